"""The device a worker renders on: which one, how precise, how full."""

from __future__ import annotations

import resource

import psutil
import torch

from farm.errors import Misconfigured

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(wanted: str) -> str:
    """auto | cpu | cuda | cuda:N → the device's name. Raises Misconfigured where it is not to be had."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise Misconfigured(f"FARM_DEVICE is {wanted!r}; use auto, cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise Misconfigured("FARM_DEVICE asks for CUDA, but torch finds no CUDA device here.")
    return wanted


def choose_dtype(wanted: str, device: str) -> torch.dtype:
    """auto is float16 on a GPU and float32 on a CPU. Raises Misconfigured for a name that is none."""
    if wanted == "auto":
        return torch.float32 if device == "cpu" else torch.float16
    if wanted not in DTYPES:
        raise Misconfigured(f"FARM_DTYPE is {wanted!r}; choose one of {', '.join(DTYPES)} or auto.")
    return DTYPES[wanted]


def limit_memory(device: str, budget: int) -> None:
    """Let this process take at most `budget` bytes of a GPU, 0 for all: beyond it is out of memory, as at the real end.

    Raises Misconfigured for more than there is, and for a budget on a CPU, whose memory the container limits.
    """
    if not budget:
        return
    if device == "cpu":
        raise Misconfigured("FARM_VRAM_BUDGET is for GPUs; give a worker on a CPU its limit in its container.")
    total = torch.cuda.mem_get_info(device)[1]
    if budget > total:
        raise Misconfigured(f"FARM_VRAM_BUDGET is {budget}, but {device} has only {total} bytes.")
    torch.cuda.set_per_process_memory_fraction(budget / total, torch.device(device).index)


def memory(device: str, budget: int = 0) -> dict[str, int]:
    """Bytes by kind; of the process where the device is the CPU.

    allocated, reserved and peak (the most that was ever allocated) of this process; total: what it may take, which is
    `budget` where one is set.
    """
    if device == "cpu":
        resident = psutil.Process().memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"allocated": resident, "reserved": resident, "peak": peak, "total": psutil.virtual_memory().total}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "total": budget or torch.cuda.mem_get_info(device)[1],
    }
