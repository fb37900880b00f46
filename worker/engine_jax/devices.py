"""Arrays over all of JAX's devices, under the names that flax gave it: `replicate`, `unreplicate`, `shard`, `unshard`.

One mesh of one axis: each device holds all parameters and its part of the batch.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from worker.engine.errors import InvalidParameter

AXIS = "devices"


def mesh(count: int | None = None) -> Mesh:
    """Of the first `count` devices; None: of all."""
    return Mesh(np.array(jax.devices()[:count]), (AXIS,))


def whole() -> NamedSharding:
    """Everything on each device."""
    return NamedSharding(mesh(), PartitionSpec())


def by_rows() -> NamedSharding:
    """The first axis dealt out over the devices."""
    return NamedSharding(mesh(), PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """Every leaf on every device; shapes stay as they are (flax put an axis of devices in front)."""
    return jax.device_put(tree, whole())


def unreplicate(tree: Any) -> Any:
    """Every leaf on the first device alone."""
    return jax.device_put(tree, jax.devices()[0])


def shard(tree: Any) -> Any:
    """Every leaf ``[n, …]`` as ``[devices, n / devices, …]``, a part on each device.

    Raises InvalidParameter where the devices do not divide n.
    """
    return jax.tree.map(_shard, tree)


def unshard(tree: Any) -> Any:
    """Every leaf ``[devices, n, …]`` as ``[devices · n, …]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _shard(x: Any) -> jax.Array:
    count = jax.device_count()
    if len(x) % count:
        raise InvalidParameter("xs", f"has {len(x)} rows, which {count} devices do not divide: give a multiple")
    return jax.device_put(np.asarray(x).reshape(count, -1, *x.shape[1:]), by_rows())
