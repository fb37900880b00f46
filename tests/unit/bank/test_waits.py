"""What is brought ahead, what fails, and whom it concerns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save

from farm.errors import (
    Canceled,
    LoraIncompatible,
    LoraNonFinite,
    LoraNotFound,
    Preempted,
    StoreUnavailable,
    UnsafeWeightsFormat,
)
from tests.unit.bank.store import make_bank, tier, until, weights

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
