"""A memory with a budget: what is in it, who holds it, and what goes when there is no room."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from farm import metrics

T = TypeVar("T")

_AWAITED_SECONDS = 60.0  # how long what was brought ahead of time is kept for its job against others brought so


@dataclass
class _Entry(Generic[T]):
    value: T
    size: int
    holders: int = 0
    awaited_until: float = 0.0


class Tier(Generic[T]):
    """Values by key within `max_bytes`, the least recently used dropped first, one that is held never.

    Where all is held the budget is overdrawn rather than a job refused, and made good as soon as something is released.
    For many threads.
    """

    def __init__(self, name: str, max_bytes: int):
        self.name, self._max_bytes = name, max_bytes
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def keys(self) -> set[Hashable]:
        with self._lock:
            return set(self._entries)

    def find(self, key: Hashable, *, ahead: bool) -> T | None:
        """The value, now the most recently used; with `ahead` it is kept for the job that it was looked for."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else self._used(key, entry, ahead=ahead)

    def hold(self, key: Hashable) -> T | None:
        """The value, kept here until it is released as often as it was held."""
        with self._lock:
            return self._hold(key)

    def put_and_hold(self, key: Hashable, value: T, size: int) -> T:
        """The value that is here under that key, or else this one, held."""
        with self._lock:
            held = self._hold(key)
            if held is None:
                self._insert(key, value, size).holders += 1
                self._shrink(self._max_bytes)
                held = value
            return held

    def release(self, key: Hashable) -> None:
        with self._lock:
            self._entries[key].holders -= 1
            self._shrink(self._max_bytes)

    def put(self, key: Hashable, value: T, size: int, *, ahead: bool) -> bool:
        """Whether it is here now. With `ahead` (of its job's turn) it takes no room from others that came so."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if ahead and not self._has_room(size):
                    return False
                entry = self._insert(key, value, size)
            self._used(key, entry, ahead=ahead)
            self._shrink(self._max_bytes, kept=key)
            return key in self._entries

    def has_room(self, size: int) -> bool:
        """Whether something of that size can be put here ahead of time."""
        with self._lock:
            return self._has_room(size)

    def clear(self) -> None:
        """Drop all that nobody holds."""
        with self._lock:
            self._shrink(0)

    def _hold(self, key: Hashable) -> T | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.holders += 1
        entry.awaited_until = 0.0
        self._entries.move_to_end(key)
        return entry.value

    def _used(self, key: Hashable, entry: _Entry[T], *, ahead: bool) -> T:
        self._entries.move_to_end(key)
        if ahead:
            entry.awaited_until = time.monotonic() + _AWAITED_SECONDS
        return entry.value

    def _insert(self, key: Hashable, value: T, size: int) -> _Entry[T]:
        entry = self._entries[key] = _Entry(value, size)
        self._resize(size)
        return entry

    def _has_room(self, size: int) -> bool:
        now = time.monotonic()
        kept = sum(e.size for e in self._entries.values() if e.holders or e.awaited_until > now)
        return kept + size <= self._max_bytes

    def _shrink(self, wanted: int, kept: Hashable = None) -> None:
        """Drop the least recently used first, and of those what is awaited last; `kept`, which somebody is about to
        hold, only if it alone is too large.
        """
        now = time.monotonic()
        idle = [
            (key, entry)
            for key, entry in self._entries.items()
            if not entry.holders and (key != kept or entry.size > wanted)
        ]
        idle.sort(key=lambda item: (item[0] == kept, item[1].awaited_until > now))
        for key, entry in idle:
            if self.bytes <= wanted:
                return
            begin = time.monotonic()
            del self._entries[key], entry.value  # here the memory is given back, unless somebody else has it, too
            self._resize(-entry.size)
            metrics.lora_evictions.labels(self.name).inc()
            metrics.lora_eviction_seconds.labels(self.name).observe(time.monotonic() - begin)

    def _resize(self, change: int) -> None:
        self.bytes += change
        metrics.lora_bytes.labels(self.name).set(self.bytes)
