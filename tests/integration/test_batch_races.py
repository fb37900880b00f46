"""Batches between two hands: what happens between any two lines of a client, a dispatcher or a worker."""

import json
import time

import pytest

from farm import keys
from farm.errors import StoreUnavailable
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(local_store, redis_url, tmp_path):
    return Works(local_store, f"file://{tmp_path / 'store'}", redis_url)


def hints_of(works, batch):
    """Every job of the batch as a hint of its first generation."""
    return [works.shelf.refs(batch.tenant, batch.id, 0)]


def failing(works, batch):
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    works.work_off(batch)
    works.painter.before = lambda request: None


def test_a_late_hint_of_an_earlier_generation_does_not_end_the_retry(works):
    batch = works.client.submit_batch(works.jobs(2))
    failing(works, batch)
    batch.retry_failed()
    for refs in hints_of(works, batch):
        works.runner.run(refs)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 2}
    assert works.painter.rendered == 2


def test_a_mark_left_for_a_stopped_worker_does_not_swallow_the_retry(works):
    batch = works.client.submit_batch(works.jobs(1))
    works.dispatcher.round()
    ref = works.shelf.refs("default", batch.id, 0)[0]
    works.ledger.claim([ref], lease_seconds=0.01)
    time.sleep(0.03)
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    works.runner.run([ref])
    works.ledger._redis.hset(keys.job_row(ref.job_id), mapping={"state": "ended", "generation": 0})
    works.painter.before = lambda request: None
    works.dispatcher.round()
    assert batch.retry_failed() == 1
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 1}


def test_a_client_that_dies_between_the_retry_and_the_index_loses_nothing(works, monkeypatch):
    batch = works.client.submit_batch(works.jobs(3))
    failing(works, batch)
    with monkeypatch.context() as death:
        death.setattr(batch._batches, "uncount", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            batch.retry_failed()
    works.look_now()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 3}


def test_a_retry_after_a_flush_during_another_retry_loses_neither(works):
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    batch = works.client.submit_batch(works.jobs(4))
    works.work_off(batch)
    refs = works.shelf.refs("default", batch.id, 0)
    assert batch.retry(refs[:2]) == 2
    works.ledger._redis.flushall()
    assert batch.retry(refs) == 2  # the other two have a later generation already
    works.painter.before = lambda request: None
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 4}


def test_a_batch_that_was_canceled_before_it_was_indexed_is_canceled_job_by_job(works, monkeypatch):
    with monkeypatch.context() as death:
        death.setattr(works.client._batches, "open", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            works.client.submit_batch(works.jobs(3), idempotency_key="k")
    batch = works.client.batch(keys.batch_id("default", "k", single=False))
    batch.cancel()
    works.look_now()
    assert works.work_off(batch).counts == {JobState.CANCELED: 3}


def test_a_canceled_batch_that_is_submitted_again_stays_canceled(works):
    jobs = works.jobs(3)
    batch = works.client.submit_batch(jobs, idempotency_key="k")
    batch.cancel()
    works.ledger._redis.flushall()
    assert works.work_off(works.client.submit_batch(jobs, idempotency_key="k")).counts == {JobState.CANCELED: 3}


def test_a_footer_of_another_batch_opens_nothing(works):
    victim = works.client.submit_batch(works.jobs(2))
    footer = works.store.get(keys.batch_footer(works.root, "default", victim.id), max_bytes=10**4).data
    uri = keys.batch_footer(works.root, "evil", "b1")
    works.store.put(uri, footer, content_type="application/json", create_only=True)
    works.batches.announce("evil", "b1", look_again_in=0)
    works.work_off(victim)
    assert works.painter.rendered == 2
    assert works.ledger._redis.hgetall(keys.QUEUED) == {}


@pytest.mark.parametrize("priority", [50.5, "x", 10**9, None])
def test_a_line_that_cannot_be_routed_fails_by_itself(works, priority):
    batch = works.client.submit_batch(works.jobs(3))
    uri = keys.spec_shard(works.root, "default", batch.id, 0)
    first, *others = works.store.get(uri, max_bytes=10**6).data.splitlines(keepends=True)
    damaged = json.dumps({**json.loads(first), "priority": priority}).encode() + b"\n"
    works.store.put(uri, damaged + b"".join(others), content_type="text/plain", create_only=False)
    assert works.work_off(batch).counts == {JobState.FAILED: 1, JobState.SUCCEEDED: 2}


def test_a_paused_batch_lets_others_of_its_tenant_by(local_store, redis_url, tmp_path, monkeypatch):
    works = Works(local_store, f"file://{tmp_path / 'store'}", redis_url, max_indexed=5)
    monkeypatch.setattr("farm.shards.MAX_JOBS", 5)
    paused = works.client.submit_batch(works.jobs(20))
    works.dispatcher.round()
    paused.pause()
    works.work_off(works.client.submit_batch(works.jobs(10)))
    paused.resume()
    assert works.work_off(paused).counts == {JobState.SUCCEEDED: 20}


def test_a_flush_during_the_walk_is_noticed(works, monkeypatch):
    batch = works.client.submit_batch(works.jobs(2))
    walk = works.batches.begin_walk()
    works.ledger._redis.flushall()
    works.batches.end_walk(walk)
    assert works.batches.epoch() is None
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 2}
    assert works.ledger._redis.hgetall(keys.QUEUED) == {}


def test_a_walk_that_fails_leaves_nothing_and_is_no_proof(works, monkeypatch):
    monkeypatch.setattr(works.shelf.store, "list", lambda prefix: (_ for _ in ()).throw(StoreUnavailable("503")))
    with pytest.raises(StoreUnavailable):
        works.dispatcher._reconciler.whole()
    assert works.ledger._redis.keys(f"{keys.WALK}*") == []
    assert works.batches.epoch() is None


def test_what_was_claimed_together_and_turns_out_slow_is_given_back(works):
    batch = works.client.submit_batch(works.jobs(6))
    works.runner._seconds_a_job = 0.001
    works.painter.before = lambda request: time.sleep(0.6)
    works.dispatcher.round()
    refs = works.shelf.refs("default", batch.id, 0)
    works.runner._run_claimed(list(zip(refs, works.ledger.claim(refs, lease_seconds=30), strict=True)))
    assert 0 < works.painter.rendered < 6
    works.painter.before = lambda request: None
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 6}
    assert {result.attempt for result in batch.results()} == {1}


def test_a_result_that_cannot_be_read_ends_its_job(works):
    batch = works.client.submit_batch(works.jobs(1))
    ref = works.shelf.refs("default", batch.id, 0)[0]
    uri = keys.result(works.root, "default", batch.id, ref.job_id, 0)
    works.store.put(uri, b"?", content_type="text/plain", create_only=True)
    assert works.work_off(batch).counts == {JobState.FAILED: 1}
