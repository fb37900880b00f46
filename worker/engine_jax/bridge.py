"""The engine's torch modules as functions of their parameters, for JAX to trace and compile.

torchax (https://github.com/google/torchax) runs torch code on JAX arrays: what a module computes is written once, in
`worker.engine`, and here its parameters are arguments.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import torch
from jax.sharding import SingleDeviceSharding
from torch import Tensor, nn
from torch._ops import OpOverloadPacket

Params: TypeAlias = dict[str, jax.Array]
Function: TypeAlias = Callable[..., Any]


def _load_torchax() -> Any:
    """torchax, whose import asks torch for operators on named dimensions.

    torch 2.13 has them no more, and so torchax 0.0.13 cannot be imported beside it. While it is, each of those answers
    with its name: enough for the tables that torchax keeps them in, and no module of ours calls them.
    """
    find = OpOverloadPacket.__getattr__

    def found_or_named(packet: OpOverloadPacket, key: str) -> Any:
        try:
            return find(packet, key)
        except AttributeError:
            if "name" in key.lower():
                return f"{packet}.{key}"
            raise

    OpOverloadPacket.__getattr__ = found_or_named
    try:
        import torchax
        from torchax import interop

        torchax.default_env()  # the rest of its tables is made here
    finally:
        OpOverloadPacket.__getattr__ = find
    return interop


_interop = _load_torchax()


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor, bfloat16 included, that nobody else writes to."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(jax.numpy.bfloat16).copy()
    return tensor.numpy().copy()


def parameters(module: nn.Module) -> Params:
    """Parameters and buffers by their names in `module`, each an array of its own on JAX's first device."""
    device = SingleDeviceSharding(jax.devices()[0])
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: jax.device_put(to_array(tensor), device) for name, tensor in tensors}


def function(module: nn.Module, run: Callable[..., Any]) -> Function:
    """``run(module, *tensors)`` as a pure function ``(params, *arrays) → arrays``, to be called under `jax.jit`.

    `params` are of the shapes of `parameters(module)`. Tracing borrows the module: not for two threads at once.
    """
    method = _Method(module, run)

    def call(params: Params, *arrays: Any) -> Any:
        named = {f"module.{name}": array for name, array in params.items()}
        with warnings.catch_warnings():  # torch's whole numbers have 64 bits, JAX's 32, which tokens fit
            warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")
            return _interop.call_torch(
                lambda given, *args: torch.func.functional_call(method, given, args), named, *arrays
            )

    return call


class _Method(nn.Module):
    """A method as a module's forward, which is what can be called with other parameters."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]):
        super().__init__()
        self.module, self._run = module, run

    def forward(self, *args: Any) -> Any:
        return self._run(self.module, *args)
