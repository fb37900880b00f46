"""A store for the bank's tests: it counts, it can be held up, and it can fail."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
from safetensors.numpy import save

from farm.errors import StoreUnavailable
from farm.schemas import LoraRef
from farm.storage.local import LocalStore
from worker.bank import Budgets, LoraBank


class WatchedStore:
    """Passes on to a local store. `gate` is open unless a test closes it; `failures` GETs fail first."""

    def __init__(self, store: LocalStore, root: str):
        self._store, self._root = store, root
        self.calls: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)
        self.failures = 0
        self.banks: list[LoraBank] = []

    def head(self, uri: str) -> Any:
        self.calls["head"] += 1
        return self._store.head(uri)

    def get(self, uri: str, **options: Any) -> Any:
        self.calls["get"] += 1
        self.waiting.release()
        assert self.gate.wait(20)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("The store is away.")
        return self._store.get(uri, **options)

    def ref(self, name: str, data: bytes | None = None, *, pin: bool = False) -> LoraRef:
        """A reference to `name`, which holds `data` if that is given."""
        uri = f"{self._root}/{name}"
        if data is not None:
            self._store.put(uri, data, content_type="x/y", create_only=False)
        return LoraRef(path=uri, sha256=sha256(data).hexdigest() if pin and data is not None else None)


class Reader:
    """What it is given, backwards; and how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: bytes) -> bytes:
        self.calls += 1
        return data[::-1]


def weights(seed: int, numbers: int = 25) -> bytes:
    """A safetensors file; 25 numbers make 168 bytes."""
    return save({"a": np.full(numbers, seed, np.float32)})


SIZE = len(weights(0))


def make_bank(store: WatchedStore, read: Any = None, *, device: int = 0, ram: int = 100, **options: Any) -> LoraBank:
    """A bank whose budgets are told in files of `SIZE` bytes."""
    budgets = Budgets(device * SIZE, ram * SIZE, options.pop("disk", 100) * SIZE, options.pop("file", 10**6))
    bank = LoraBank(store, read or Reader(), device="cpu", budgets=budgets, **options)
    store.banks.append(bank)
    return bank


def tier(bank: LoraBank, ref: LoraRef, **options: Any) -> str:
    """Where the ref's weights came from this time."""
    with bank.hold([ref], **options) as (asset,):
        return asset.tier


def until(condition: Callable[[], object]) -> None:
    """Wait for what the bank's threads do after they served those who wait."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
