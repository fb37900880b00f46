"""What the failures of a device mean, and what to do before going on."""

import gc
import logging
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    if isinstance(error, DeviceLost):
        return Fault.STICKY
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


def synchronize(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def release_memory(device: str) -> None:
    """Let go of what nobody holds any more, so that a smaller attempt finds room."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


class DeviceLost(Exception):
    """Nothing more can be done on this device by this process. The message says why."""


class MemoryExhausted(Exception):
    """Memory ran out. The message is the device's own first line; nothing of the attempt is held by it."""


def within_memory(device: str, do: Callable[[], T]) -> T:
    """What `do` gives. Raises MemoryExhausted, with the memory of the attempt let go of, where it ran out."""
    try:
        return do()
    except Exception as error:
        if fault_of(error) is not Fault.MEMORY:
            raise
        shortage = first_line(error)
    # Here and not in the handler: the tensors of an attempt live as long as its exception does.
    logger.warning("out of memory: %s", shortage)
    release_memory(device)
    raise MemoryExhausted(shortage)
