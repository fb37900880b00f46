"""Weights brought to the device beside the work that goes on there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from farm.errors import Resource
from worker.bank.tensors import Place, exchanged, tensors_in
from worker.engine.faults import Fault, fault_of, first_line, release_memory

_ALIGNED = 256  # bytes; what CUDA's own allocations are aligned to


class CudaPlacement:
    """One copy of one page-locked buffer on a stream of its own, so that the engine's kernels run on meanwhile.

    To be called off the engine's thread: it returns when the copy is done, after which the tensors may be used on any
    stream. All of one file's tensors are views of one allocation, so that dropping them frees one block, which the
    allocator gives away again only when `engine_stream` (the device's default stream if not given) is past all work
    that was begun on it before.
    """

    def __init__(self, device: str, engine_stream: torch.cuda.Stream | None = None):
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)
        self._engine_stream = engine_stream or torch.cuda.default_stream(self._device)

    def __call__(self, weights: Any) -> Any:
        buffer, places = packed(weights, pinned=True)
        with torch.cuda.stream(self._stream):
            moved = buffer.to(self._device, non_blocking=True)
        moved.record_stream(self._engine_stream)
        self._stream.synchronize()
        return unpacked(weights, moved, places)


def within_memory(place: Place, make_room: Callable[[], None], device: str) -> Place:
    """`place`, which if memory runs out is tried once more after `make_room`, and then raises Resource."""

    def placed(weights: Any) -> Any:
        shortage = ""
        for _ in range(2):
            try:
                return place(weights)
            except Exception as error:
                if fault_of(error) is not Fault.MEMORY:
                    raise
                shortage = first_line(error)
            make_room()
            release_memory(device)
        raise Resource(f"There is no room on the device for a LoRA ({shortage}); lower FARM_LORA_DEVICE_BYTES.")

    return placed


def packed(value: Any, *, pinned: bool = False) -> tuple[Tensor, dict[int, slice]]:
    """All tensors of `value` in one uint8 buffer on the CPU (page-locked if `pinned`), and each one's place by `id`."""
    places: dict[int, slice] = {}
    unique = {id(tensor): tensor for tensor in tensors_in(value)}
    end = 0
    for key, tensor in unique.items():
        places[key] = slice(end, end + tensor.nbytes)
        end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
    for key, tensor in unique.items():
        buffer[places[key]].copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    return buffer, places


def unpacked(value: Any, buffer: Tensor, places: Mapping[int, slice]) -> Any:
    """`value` with its tensors as views of `buffer`, a copy on whatever device of what `packed` made of it."""
    views = {id(t): buffer[places[id(t)]].view(t.dtype).view(t.shape) for t in tensors_in(value)}
    return exchanged(value, views)
