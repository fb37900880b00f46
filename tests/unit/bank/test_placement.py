"""Weights on their way to a device: bit for bit, in one piece, beside the engine's work."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from farm.errors import Resource
from worker.bank.placement import CudaPlacement, packed, unpacked, within_memory
from worker.bank.tensors import nbytes, tensors_in
from worker.engine.lora import LoraWeights
from worker.engine.lora.deltas import Decomposed, Kronecker, LowRank


@dataclass(frozen=True)
class Mixed:
    parts: dict
    note: str


def lora(dtype: torch.dtype = torch.float16) -> LoraWeights:
    draw = torch.Generator().manual_seed(0)

    def t(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    low = LowRank(t(8, 2), t(2, 9), 0.5, (8, 9))
    return LoraWeights(
        {
            "unet.a": low,
            "unet.b": Decomposed(low, t(8, 1), inside=True),
            "unet.c": Kronecker(t(2, 2), t(4, 3), 1.0, (8, 6), second_down=t(3, 3)),
        },
        "f" * 64,
    )


def same(one, other) -> bool:
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in pairs) and len(pairs) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_tensors_travel_in_one_buffer_and_come_out_bit_for_bit(dtype):
    weights = lora(dtype)
    buffer, places = packed(weights)
    moved = unpacked(weights, buffer.clone(), places)
    assert same(weights, moved)
    assert moved.fingerprint == weights.fingerprint
    assert isinstance(moved.deltas["unet.b"], Decomposed) and moved.deltas["unet.b"].inside
    assert moved.deltas["unet.c"].second_down is not None and moved.deltas["unet.c"].first_down is None
    assert len({t.untyped_storage().data_ptr() for t in tensors_in(moved)}) == 1
    assert len(places) == 6  # `low` is in there twice and travels once
    base = torch.randn(8, 9)
    assert torch.equal(moved.deltas["unet.b"].change(base, 0.7), weights.deltas["unet.b"].change(base, 0.7))


def test_other_containers_scalars_views_and_empty_tensors():
    whole = torch.arange(12.0).view(3, 4)
    value = Mixed({"t": whole.t(), "row": whole[1], "list": [torch.tensor(3), (torch.zeros(0, 2), "x")]}, "n")
    buffer, places = packed(value)
    moved = unpacked(value, buffer, places)
    assert same(value, moved)
    assert (moved.note, moved.parts["list"][1][1]) == ("n", "x")
    assert nbytes(value) == 48 + 16 + 8 and all(place.start % 256 == 0 for place in places.values())


def test_memory_that_runs_out_is_made_room_for_once():
    tries, rooms = [], []

    def place(weights):
        tries.append(weights)
        if len(tries) != 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
        return "placed"

    placed = within_memory(place, lambda: rooms.append(1), "cpu")
    assert placed("w") == "placed" and (len(tries), len(rooms)) == (2, 1)
    with pytest.raises(Resource):
        placed("w")


def test_another_failure_of_the_device_is_raised_as_it_is():
    def place(weights):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        within_memory(place, lambda: pytest.fail("no room helps here"), "cpu")("w")


@pytest.mark.gpu
def test_it_arrives_on_the_device_bit_for_bit_while_the_engine_works():
    place, weights = CudaPlacement("cuda"), lora()
    place(weights)  # new memory, on either side, may wait for the device
    busy = torch.randn(4096, 4096, device="cuda")
    done = torch.cuda.Event()
    for _ in range(200):
        busy = busy @ busy / busy.norm()
    done.record()
    moved = place(weights)
    assert not done.query(), "the copy waited for the engine's stream"
    assert same(weights, moved) and all(t.is_cuda for t in tensors_in(moved))


@pytest.mark.gpu
def test_memory_that_is_dropped_is_not_written_while_the_engine_still_reads_it():
    """Without `record_stream` the next LoRA is copied into the memory that a queued kernel has still to read."""
    place = CudaPlacement("cuda")
    first, second = ({"w": torch.full((1 << 22,), value)} for value in (1.0, 2.0))
    sums = []
    torch.cuda.synchronize()
    for _ in range(8):
        moved = place(first)
        torch.cuda._sleep(200_000_000)
        sums.append(moved["w"].sum())
        del moved
        place(second)
    assert [float(s) for s in sums] == [float(1 << 22)] * 8


@pytest.mark.gpu
def test_placing_again_and_again_keeps_memory_flat():
    place, weights = CudaPlacement("cuda"), {"w": torch.randn(1 << 22)}
    place(weights)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(100):
        place(weights)
    assert torch.cuda.memory_reserved() <= before + (32 << 20)
