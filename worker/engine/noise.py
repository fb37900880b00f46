"""Gaussian noise, drawn where the generator lives and then moved, so that a seed means one picture on every device."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from worker.engine.errors import InvalidParameter

Generators: TypeAlias = torch.Generator | list[torch.Generator] | None


def randn_tensor(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Noise of `shape` on `device`. A list of generators draws row k of dimension 0 from generator k.

    Raises InvalidParameter for a CUDA generator when the noise is wanted on another kind of device.
    """
    device = torch.device(device or "cpu")
    generators = generator if isinstance(generator, list) else [generator]
    source = device if generators[0] is None else generators[0].device
    if source.type not in (device.type, "cpu"):
        raise InvalidParameter("generator", f"lives on {source.type} and cannot draw for {device.type}: use a CPU one")
    source = device if source.type == device.type else source
    if len(generators) == 1:
        return torch.randn(tuple(shape), generator=generators[0], device=source, dtype=dtype).to(device)
    if len(generators) < shape[0]:
        raise InvalidParameter("generator", f"has {len(generators)} entries for {shape[0]} images: give one each")
    row = (1, *shape[1:])
    rows = [torch.randn(row, generator=one, device=source, dtype=dtype) for one in generators[: shape[0]]]
    return torch.cat(rows).to(device)


def skip_sample(
    count: int, shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype
) -> None:
    """Advance the generator as sampling `count` latents of `shape` would.

    diffusers encodes some pictures whose latents are then not used; the next number drawn must nevertheless be the
    same, and drawing costs nothing beside an encoder.
    """
    if isinstance(generator, list):
        for one in generator[:count]:
            randn_tensor((1, *shape), one, device, dtype)
    else:
        randn_tensor((count, *shape), generator, device, dtype)
