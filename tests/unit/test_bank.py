"""LoRAs are read once, kept as near as there is room, and known by what they are."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save

from farm import metrics
from farm.errors import (
    Canceled,
    InputChanged,
    LoraHashMismatch,
    LoraIncompatible,
    LoraNonFinite,
    LoraNotFound,
    Preempted,
    Resource,
    StoreUnavailable,
    UnsafeWeightsFormat,
)
from farm.schemas import EmbeddingRef
from tests.unit.bank_store import SIZE, Reader, WatchedStore, make_bank, weights
from worker.assets import Kind
from worker.bank import LoraBank


@pytest.fixture
def store(local_store, tmp_path) -> Iterator[WatchedStore]:
    watched = WatchedStore(local_store, f"file://{tmp_path}/store")
    yield watched
    watched.gate.set()
    for bank in watched.banks:
        bank.close()


def tier(bank: LoraBank, ref, **options) -> str:
    with bank.hold([ref], **options) as (asset,):
        return asset.tier


def until(condition) -> None:
    """Wait for what the bank's threads do after they served those who wait."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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


def test_the_least_recently_used_goes_first(store):
    bank = make_bank(store, ram=2)
    a, b, c = (store.ref(name, weights(ord(name)), pin=True) for name in "abc")
    assert [tier(bank, ref) for ref in (a, b, a, c, a, b)] == ["remote", "remote", "ram", "remote", "ram", "remote"]


def test_what_is_held_stays_and_goes_when_it_is_released(store):
    bank, a, b = make_bank(store, ram=1), store.ref("a", weights(1), pin=True), store.ref("b", weights(2), pin=True)
    evictions = metrics.REGISTRY.get_sample_value("farm_lora_evictions_total", {"tier": "ram"}) or 0
    with bank.hold([a]):
        assert tier(bank, b) == "remote"  # the budget is overdrawn by the one that is held least long
        assert tier(bank, a) == "ram"
        with bank.hold([a, b]):
            assert bank._ram.bytes == 2 * SIZE
    assert bank._ram.bytes == SIZE
    assert metrics.REGISTRY.get_sample_value("farm_lora_evictions_total", {"tier": "ram"}) == evictions + 2
    assert metrics.REGISTRY.get_sample_value("farm_lora_bytes", {"tier": "ram"}) == SIZE
    assert metrics.REGISTRY.get_sample_value("farm_lora_resident") == 1


def test_a_job_that_fails_releases_what_it_held(store):
    bank, ref = make_bank(store, ram=0), store.ref("a", weights(1))
    with pytest.raises(LoraNotFound):
        bank.hold([ref, store.ref("none")]).__enter__()
    with pytest.raises(ZeroDivisionError), bank.hold([ref]):
        raise ZeroDivisionError
    assert bank._ram.bytes == 0


# Ahead of its turn


def test_what_was_prefetched_is_there_when_its_turn_comes(store):
    bank, ref = make_bank(store, device=3, place=lambda w: w), store.ref("a", weights(1), pin=True)
    bank.prefetch([ref])
    until(lambda: bank._resident.bytes)
    assert tier(bank, ref) == "resident"


def test_prefetching_takes_no_room_from_what_was_prefetched(store, tmp_path):
    bank = make_bank(store, ram=2, folder=tmp_path / "disk")
    refs = [store.ref(name, weights(ord(name)), pin=True) for name in "abcd"]
    bank.prefetch(refs)
    until(lambda: len(list((tmp_path / "disk" / "versions").iterdir())) == 4)
    tiers = [tier(bank, ref) for ref in refs]
    assert sorted(tiers) == ["disk", "disk", "ram", "ram"]
    assert store.calls["get"] == 4


def test_a_job_that_waits_overtakes_what_is_made_ahead(store):
    bank = make_bank(store, threads=2)
    ahead = [store.ref(f"ahead-{n}", weights(n)) for n in range(8)]
    store.gate.clear()
    bank.prefetch(ahead)
    with ThreadPoolExecutor(2) as pool:
        assert store.waiting.acquire(timeout=20)  # one of the two threads is at it; the other is kept for jobs
        assert not store.waiting.acquire(timeout=0.1)
        waits = [pool.submit(tier, bank, ref) for ref in (store.ref("now", weights(99)), ahead[7])]
        assert store.waiting.acquire(timeout=20)
        store.gate.set()
        assert [w.result() for w in waits] == ["remote", "remote"]


# Errors


def test_a_bad_lora_is_read_once_and_each_job_has_an_error_of_its_own(store):
    calls = []

    def read(data: bytes) -> bytes:
        calls.append(data)
        raise LoraIncompatible("It was made for another base.")

    bank, ref = make_bank(store, read), store.ref("a", weights(1))

    def error() -> BaseException:
        with pytest.raises(LoraIncompatible) as caught:
            tier(bank, ref)
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(lambda _: error(), range(8)))
    assert len(set(map(id, errors))) == 8 and len(calls) == 1


def test_a_bad_lora_is_nothing_to_the_others_of_the_same_moment(store):
    bank = make_bank(store)
    good, bad = store.ref("good", weights(1)), store.ref("bad", save({"a": np.array([np.nan], np.float32)}))
    with ThreadPoolExecutor(8) as pool:
        tiers = [pool.submit(tier, bank, ref) for ref in (good, bad) * 4]
        assert all(t.result() in ("remote", "ram") for t in tiers[::2])
        assert all(isinstance(t.exception(), LoraNonFinite) for t in tiers[1::2])


def test_a_job_does_not_fail_by_what_was_seen_before_it_was_claimed(store, monkeypatch):
    """The first looks when there is nothing; by the time the second is claimed, it has been uploaded."""
    bank, ref, looking, uploaded = make_bank(store), store.ref("a"), threading.Event(), threading.Event()
    head = store.head

    def slow(uri: str):
        try:
            return head(uri)
        finally:
            looking.set()
            assert uploaded.wait(20)

    monkeypatch.setattr(store, "head", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tier, bank, ref)
        assert looking.wait(20)
        store.ref("a", weights(1))
        second = pool.submit(tier, bank, ref, since=time.monotonic())
        time.sleep(0.1)  # it waits for the first one's load
        uploaded.set()
        assert isinstance(first.exception(), LoraNotFound)
        assert second.result() == "remote"


def test_a_store_that_was_away_is_asked_again(store):
    bank, ref = make_bank(store), store.ref("a", weights(1))
    store.failures = 1
    with pytest.raises(StoreUnavailable):
        tier(bank, ref)
    assert tier(bank, ref) == "remote"


def test_a_pickle_is_not_even_fetched(store):
    with pytest.raises(UnsafeWeightsFormat):
        tier(make_bank(store), store.ref("a.ckpt", b"x"))
    assert not store.calls


def test_a_job_that_is_canceled_leaves_and_the_load_goes_on(store):
    bank, ref = make_bank(store), store.ref("a", weights(1), pin=True)
    store.gate.clear()

    def canceled(size: int) -> None:
        raise Canceled("Its batch was canceled.")

    with pytest.raises(Canceled):
        tier(bank, ref, progress=canceled)
    store.gate.set()
    assert tier(bank, ref) in ("remote", "ram")
    assert store.calls["get"] == 1


def test_one_who_waits_in_line_hears_that_others_move(store):
    bank, heard, moved = make_bank(store, threads=1), [], threading.Event()
    get = store._store.get

    def slow(uri: str, *, progress, **options):
        if uri.endswith("first"):
            while not moved.wait(0.05):
                progress(10)
        return get(uri, progress=progress, **options)

    store._store.get = slow
    first, second = store.ref("first", weights(1)), store.ref("second", weights(2))
    bank.prefetch([first])
    assert store.waiting.acquire(timeout=20)

    def hear(size: int) -> None:
        heard.append(size)
        if sum(heard) >= 20:
            moved.set()

    assert tier(bank, second, progress=hear) == "remote"
    assert sum(heard) >= 20


def test_a_bank_that_closes_sends_the_waiting_away(store):
    bank = make_bank(store, threads=1)
    refs = [store.ref(name, weights(ord(name))) for name in "ab"]
    store.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(tier, bank, refs[0])
        assert store.waiting.acquire(timeout=20)
        second = pool.submit(tier, bank, refs[1])
        until(lambda: len(bank._flights._air) == 2)
        bank.close()
        assert isinstance(second.exception(20), Preempted)
        store.gate.set()
        assert first.result() == "remote"
    with pytest.raises(Preempted):
        tier(bank, refs[1])
    bank.prefetch(refs)
