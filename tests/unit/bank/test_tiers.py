"""LoRAs are read once, kept as near as there is room, and known by what they are."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import pytest

from farm import metrics
from farm.errors import (
    InputChanged,
    LoraHashMismatch,
    LoraNotFound,
    Resource,
)
from farm.schemas import EmbeddingRef
from tests.unit.bank.store import SIZE, Reader, make_bank, tier, until, weights
from worker.assets import Kind

# What comes from where


def test_a_second_job_finds_it_in_memory(store):
    read = Reader()
    bank, ref = make_bank(store, read), store.ref("a", weights(1))
    with bank.hold([ref]) as (first,), bank.hold([ref]) as (second,):
        assert (first.tier, second.tier) == ("remote", "ram")
        assert first.weights is second.weights and first.weights == weights(1)[::-1]
        assert first.seconds > 0 and second.seconds > 0
    assert (read.calls, store.calls) == (1, {"get": 1, "head": 2})


def test_ten_jobs_that_want_it_at_once_read_it_once(store):
    read, ref = Reader(), store.ref("a", weights(1), pin=True)
    bank = make_bank(store, read)
    store.gate.clear()
    with ThreadPoolExecutor(10) as pool:
        tiers = [pool.submit(tier, bank, ref) for _ in range(10)]
        store.waiting.acquire()
        time.sleep(0.1)  # nine more have come by now, and wait for the same
        store.gate.set()
        assert {t.result() for t in tiers} <= {"remote", "ram"}
    assert (store.calls["get"], read.calls) == (1, 1)


def test_the_refs_of_one_job_are_read_side_by_side(store):
    bank, refs = make_bank(store), [store.ref(name, weights(ord(name))) for name in "abc"]
    store.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(lambda: tuple(a.sha256 for a in ExitStack().enter_context(bank.hold(refs))))
        for _ in refs:
            assert store.waiting.acquire(timeout=20)
        store.gate.set()
        assert len(set(held.result())) == 3


def test_a_restarted_worker_finds_it_on_disk(store, tmp_path):
    pinned, free = store.ref("a", weights(1), pin=True), store.ref("b", weights(2))
    first = make_bank(store, folder=tmp_path / "disk")
    tier(first, pinned), tier(first, free)
    until(lambda: len(list((tmp_path / "disk" / "versions").iterdir())) == 2)
    store.calls.clear()
    second = make_bank(store, folder=tmp_path / "disk")
    assert (tier(second, pinned), tier(second, free)) == ("disk", "disk")
    assert store.calls == {"head": 1}  # the pinned one is what it is; of the other it is asked whether it is still so


def test_a_damaged_file_on_disk_is_fetched_anew(store, tmp_path):
    ref, folder = store.ref("a", weights(1), pin=True), tmp_path / "disk"
    tier(make_bank(store, folder=folder), ref)
    until(lambda: list((folder / "versions").iterdir()))
    (file,) = (folder / "files").iterdir()
    file.write_bytes(weights(2))
    assert tier(make_bank(store, folder=folder), ref) == "remote"
    until(lambda: file.exists() and file.read_bytes() == weights(1))


def test_a_disk_that_is_full_is_no_jobs_trouble(store, tmp_path, monkeypatch):
    bank, refs = make_bank(store, folder=tmp_path / "disk"), [store.ref(name, weights(ord(name))) for name in "ab"]
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(os, "write", full)
    assert [tier(bank, ref) for ref in refs] == ["remote", "remote"]
    until(lambda: full.call_count == 6)  # each twice, since the cache makes room for itself; and what each was
    assert not list((tmp_path / "disk" / "files").iterdir()) and not list((tmp_path / "disk" / "partial").iterdir())


def test_the_device_is_the_nearest_tier_and_the_smallest(store):
    placed = []
    bank = make_bank(store, device=2, place=lambda w: placed.append(w) or (b"on device", w))
    refs = [store.ref(name, weights(ord(name)), pin=True) for name in "abc"]
    assert [tier(bank, ref) for ref in (*refs, refs[2], refs[0])] == ["remote", "remote", "remote", "resident", "ram"]
    assert len(placed) == 4
    with bank.hold([refs[0]]) as (asset,):
        assert asset.weights[0] == b"on device"


def test_a_device_without_room_gives_up_what_lies_there_unused(store):
    tries = []

    def place(w: bytes) -> bytes:
        tries.append(w)
        if len(tries) > 1:
            raise MemoryError("out of memory")
        return w

    bank = make_bank(store, device=9, place=place)
    first, second = (store.ref(name, weights(ord(name)), pin=True) for name in "ab")
    tier(bank, first)
    with pytest.raises(Resource):
        tier(bank, second)
    assert len(tries) == 3  # the second one twice
    assert bank._resident.bytes == 0


def test_one_file_read_as_two_things_is_two_assets(store):
    bank = make_bank(store, others={EmbeddingRef: Kind(lambda data: b"word")})
    lora = store.ref("a", weights(1), pin=True)
    word = EmbeddingRef(path=lora.path, sha256=lora.sha256)
    with bank.hold([lora, word]) as (one, other):
        assert one.sha256 == other.sha256 and other.weights == b"word" != one.weights


# What a reference means


def test_a_file_that_changed_is_read_again(store):
    bank = make_bank(store)
    tier(bank, store.ref("a", weights(1)))
    with bank.hold([store.ref("a", weights(2))]) as (asset,):
        assert asset.weights == weights(2)[::-1]


def test_a_job_keeps_the_version_that_was_seen_when_it_was_claimed(store):
    bank, ref, claimed = make_bank(store, ram=1), store.ref("a", weights(1)), time.monotonic()
    bank.prefetch([ref], since=claimed)
    until(lambda: bank._ram.bytes)
    store.ref("a", weights(2))
    with bank.hold([ref], since=claimed) as (asset,):
        assert asset.weights == weights(1)[::-1]
    assert store.calls == {"get": 1, "head": 1}
    tier(bank, store.ref("b", weights(3)))  # takes its place
    with pytest.raises(InputChanged):
        tier(bank, ref, since=claimed)
    assert tier(bank, ref) == "remote"  # a job that was claimed later gets what is there now


def test_content_that_changes_under_one_etag_is_noticed(store, monkeypatch):
    bank, ref = make_bank(store, ram=1), store.ref("a", weights(1))
    tier(bank, ref)
    tier(bank, store.ref("b", weights(2)))
    get = store._store.get
    monkeypatch.setattr(store._store, "get", lambda uri, **options: replace(get(uri, **options), data=weights(3)))
    with pytest.raises(InputChanged):
        tier(bank, ref)


@pytest.mark.parametrize("held", [False, True])
def test_a_pin_is_checked_also_in_memory(store, held):
    bank, ref = make_bank(store), store.ref("a", weights(1))
    if held:
        tier(bank, ref)
    with pytest.raises(LoraHashMismatch):
        tier(bank, ref.model_copy(update={"sha256": "0" * 64}))


def test_nobody_gets_by_its_hash_what_lies_at_another_address(store, tmp_path):
    bank = make_bank(store, folder=tmp_path / "disk")
    theirs = store.ref("theirs", weights(1), pin=True)
    tier(bank, theirs)
    with pytest.raises(LoraNotFound):
        tier(bank, store.ref("none").model_copy(update={"sha256": theirs.sha256}))
    with pytest.raises(LoraHashMismatch):
        tier(bank, store.ref("mine", weights(2)).model_copy(update={"sha256": theirs.sha256}))


# Budgets and holds


def counted(what: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"farm_lora_{what}", {"tier": "ram"}) or 0.0


def test_the_least_recently_used_goes_first(store):
    bank = make_bank(store, ram=2)
    a, b, c = (store.ref(name, weights(ord(name)), pin=True) for name in "abc")
    assert [tier(bank, ref) for ref in (a, b, a, c, a, b)] == ["remote", "remote", "ram", "remote", "ram", "remote"]


def test_what_is_held_stays_and_goes_when_it_is_released(store):
    bank, a, b = make_bank(store, ram=1), store.ref("a", weights(1), pin=True), store.ref("b", weights(2), pin=True)
    dropped, timed = (counted(name) for name in ("evictions_total", "eviction_seconds_count"))
    with bank.hold([a]):
        assert tier(bank, b) == "remote"  # the budget is overdrawn by the one that is held least long
        assert tier(bank, a) == "ram"
        with bank.hold([a, b]):
            assert bank._ram.bytes == 2 * SIZE
    assert bank._ram.bytes == SIZE
    assert (counted("evictions_total"), counted("eviction_seconds_count")) == (dropped + 2, timed + 2)
    assert counted("bytes") == SIZE
    assert metrics.REGISTRY.get_sample_value("farm_lora_resident") == 1


def test_a_job_that_fails_releases_what_it_held(store):
    bank, ref = make_bank(store, ram=0), store.ref("a", weights(1))
    with pytest.raises(LoraNotFound):
        bank.hold([ref, store.ref("none")]).__enter__()
    with pytest.raises(ZeroDivisionError), bank.hold([ref]):
        raise ZeroDivisionError
    assert bank._ram.bytes == 0
