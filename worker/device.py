"""The device a worker renders on: which one, how full, and what its failures mean."""

from __future__ import annotations

import gc
import resource
from enum import Enum

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


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release_memory(device: str) -> None:
    """Let go of what nobody holds any more, so that a smaller attempt finds room."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def memory(device: str) -> dict[str, int]:
    """Bytes by kind (allocated, reserved, peak, total); of the process where the device is the CPU."""
    if device == "cpu":
        resident = psutil.Process().memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"allocated": resident, "reserved": resident, "peak": peak, "total": psutil.virtual_memory().total}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "total": torch.cuda.mem_get_info(device)[1],
    }


class Fault(Enum):
    MEMORY = "out of memory"  # less at once may work
    STICKY = "sticky"  # the CUDA context is lost: every later call of this process fails, too


# How libraries below torch say it, in lower case.
_MEMORY = ("out of memory", "can't allocate memory", "_alloc_failed")
_STICKY = (
    "cuda error:",
    "cuda driver error:",
    "_execution_failed",
    "_internal_error",
    "nccl error",
    "uncorrectable ecc",
)


def fault_of(error: BaseException) -> Fault | None:
    """What `error`, or what it came of, says of the device; None for an error that is not the device's.

    The chain is followed because tidying up after a device that failed raises, too, and other things.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if (fault := _own_fault(link)) is not None:
            return fault
        link = link.__cause__ or link.__context__
    return None


def _own_fault(error: BaseException) -> Fault | None:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Fault.MEMORY
    if not isinstance(error, RuntimeError):
        return None
    text = str(error).lower()
    if any(words in text for words in _MEMORY):
        return Fault.MEMORY
    if isinstance(error, torch.AcceleratorError) or any(words in text for words in _STICKY):
        return Fault.STICKY
    return None


def first_line(error: BaseException) -> str:
    """CUDA's errors go on about debugging; the first line says what it was."""
    return (str(error).splitlines() or [type(error).__name__])[0]
