"""Which bytes an address stands for: the sha256 of what was read there, remembered by the object's ETag.

A LoRA is known by its sha256. Knowing one is not enough to be given its bytes, though: they are served for an address
only once that very object was seen to hold them, so that no tenant gets what another one keeps to itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from farm.errors import LoraHashMismatch

_MOST = 100_000  # addresses remembered in memory, some 300 bytes each


class Ref(Protocol):
    """A weights file that a job names: its address, and the sha256 it is pinned to, if it is."""

    @property
    def path(self) -> str: ...

    @property
    def sha256(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Version:
    """What the object at an address was: its ETag, bytes and their sha256; `at` (time.monotonic) is when it was so."""

    etag: str
    size: int
    sha256: str
    at: float


class Versions:
    """The version last seen at each address. For many threads."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Version] = OrderedDict()
        self._lock = threading.Lock()

    def last(self, path: str) -> Version | None:
        with self._lock:
            return self._seen.get(path)

    def note(self, path: str, version: Version) -> None:
        with self._lock:
            self._seen[path] = version
            self._seen.move_to_end(path)
            if len(self._seen) > _MOST:
                self._seen.popitem(last=False)


def serves(ref: Ref, version: Version | None, since: float) -> bool:
    """Whether what is known settles which bytes `ref` means: by its pin, or by a look at the object since `since`."""
    if version is None:
        return False
    return version.at >= since if ref.sha256 is None else version.sha256 == ref.sha256


def check_pin(ref: Ref, sha256: str) -> None:
    """Raises LoraHashMismatch."""
    if ref.sha256 not in (None, sha256):
        raise LoraHashMismatch(f"The file at {ref.path} has sha256 {sha256}, the job wants {ref.sha256}.")
