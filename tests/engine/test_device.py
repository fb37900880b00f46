"""The memory a worker may take: its budget, and what it says of it."""

import pytest
import torch

from farm.errors import Misconfigured
from tests.engine.renderer_bench import make_renderer
from worker import device

TOTAL = 80_000


@pytest.fixture
def gpu(monkeypatch):
    """Of TOTAL bytes; what torch was told of the part that this process may take."""
    told = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (TOTAL // 2, TOTAL))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: told.append(given))
    for name, size in {"memory_allocated": 16, "memory_reserved": 18, "max_memory_allocated": 17}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    return told


def test_a_budget_is_torchs_own_limit(gpu):
    device.limit_memory("cuda:1", 20_000)
    device.limit_memory("cuda", 80_000)
    assert gpu == [(0.25, 1), (1.0, None)]
    device.limit_memory("cuda", 0)
    assert len(gpu) == 2, "without a budget nothing is limited"


def test_a_budget_that_cannot_be_kept_is_refused(gpu):
    with pytest.raises(Misconfigured, match="FARM_VRAM_BUDGET is 80001, but cuda has only 80000 bytes"):
        device.limit_memory("cuda", TOTAL + 1)
    with pytest.raises(Misconfigured, match="is for GPUs"):
        device.limit_memory("cpu", 1)
    assert not gpu


def test_what_is_told_of_memory_ends_at_the_budget(gpu):
    assert device.memory("cuda") == {"allocated": 16, "reserved": 18, "peak": 17, "total": TOTAL}
    assert device.memory("cuda", 20_000)["total"] == 20_000
    assert 0 < device.memory("cpu")["allocated"] <= device.memory("cpu")["peak"] < device.memory("cpu")["total"]


def test_a_worker_keeps_to_its_budget_before_it_loads_anything(tiny_checkpoint):
    with pytest.raises(Misconfigured, match="FARM_VRAM_BUDGET"):
        make_renderer(tiny_checkpoint(), vram_budget=10**9)
