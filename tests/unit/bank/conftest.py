"""The store of the bank's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.storage.local import LocalStore
from tests.unit.bank.store import WatchedStore


@pytest.fixture
def store(local_store: LocalStore, tmp_path: Path) -> Iterator[WatchedStore]:
    """A watched store whose banks are closed in the end."""
    store = WatchedStore(local_store, f"file://{tmp_path}/store")
    yield store
    store.gate.set()
    for bank in store.banks:
        bank.close()
