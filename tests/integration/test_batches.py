"""Batches from acceptance to their last result: a real Redis, a real store, a dispatcher, a painting worker."""

import json
import time
from itertools import count

import pytest

from farm import keys
from farm.errors import IdempotencyConflict, InvalidParameter, QuotaExceeded, StoreUnavailable
from farm.shards import MAX_JOBS, refs_in, shards_of
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(local_store, redis_url, tmp_path):
    return Works(local_store, f"file://{tmp_path / 'store'}", redis_url)


def test_every_job_of_a_batch_ends_once(works):
    jobs = works.jobs(40)
    batch = works.client.submit_batch(jobs)
    assert batch.status().counts == {JobState.QUEUED: 40}
    summary = works.work_off(batch)
    assert summary.counts == {JobState.SUCCEEDED: 40}
    assert [result.custom_id for result in batch.results()] == [job.custom_id for job in jobs]
    assert works.painter.rendered == 40
    assert works.client.batch(batch.id).status() == summary


def test_a_batch_of_several_shards_is_indexed_as_there_is_room(local_store, redis_url, tmp_path, monkeypatch):
    works = Works(local_store, f"file://{tmp_path / 'store'}", redis_url, max_indexed=20)
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    batch = works.client.submit_batch(works.jobs(55))
    works.dispatcher.round()
    record = works.batches.record("default", batch.id)
    assert (record.shards, record.next_shard, record.live) == (6, 2, 20)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 55}


def test_one_idempotency_key_is_one_batch(works):
    jobs = works.jobs(5)
    first = works.client.submit_batch(jobs, idempotency_key="monday")
    works.work_off(first)
    again = works.client.submit_batch(iter(jobs), idempotency_key="monday")
    assert again.id == first.id
    works.work_off(again)
    assert works.painter.rendered == 5
    for others in (works.jobs(5), jobs[:4], [*jobs, *works.jobs(1)]):
        with pytest.raises(IdempotencyConflict):
            works.client.submit_batch(others, idempotency_key="monday")


def test_a_batch_that_was_cut_off_goes_on_under_its_key(works, monkeypatch):
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    jobs = works.jobs(35)

    def cut(upto):
        yield from jobs[:upto]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        works.client.submit_batch(cut(25), idempotency_key="k")
    works.look_now()
    assert not works.turn()  # nothing of it was accepted
    assert works.work_off(works.client.submit_batch(jobs, idempotency_key="k")).counts == {JobState.SUCCEEDED: 35}


def test_what_makes_no_batch_leaves_none(works):
    twice = works.jobs(1) * 2
    with pytest.raises(InvalidParameter, match="comes twice"):
        works.client.submit_batch(twice)
    with pytest.raises(InvalidParameter, match="tenant"):
        works.client.submit_batch(works.jobs(1, tenant="another"))
    assert not works.turn()
    with pytest.raises(InvalidParameter, match="no batch"):
        works.client.batch("0" * 32)


def test_an_empty_batch_is_done_at_once(works):
    batch = works.client.submit_batch([])
    works.look_now()
    assert works.work_off(batch).jobs == 0


def test_jobs_without_a_name_are_named_after_their_place(works):
    batch = works.client.submit_batch(works.job(num_inference_steps=1) for _ in range(3))
    works.work_off(batch)
    assert [result.custom_id for result in batch.results()] == ["00000000", "00000001", "00000002"]


# Accidents


def test_a_client_that_dies_after_the_footer_loses_nothing(works, monkeypatch):
    with monkeypatch.context() as death:
        death.setattr(works.client._batches, "open", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            works.client.submit_batch(works.jobs(3), idempotency_key="k")
    works.look_now()
    batch = works.client.batch(keys.batch_id("default", "k", single=False))
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 3}


def test_a_client_that_dies_after_the_spec_loses_nothing(works, monkeypatch):
    with monkeypatch.context() as death:
        death.setattr(works.client._ledger, "enqueue", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            works.submit(custom_id="x")
    works.look_now()
    works.turn()
    assert works.painter.rendered == 1


def test_after_a_flush_nothing_is_missing_and_nothing_is_done_twice(works, monkeypatch):
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    batch, single = works.client.submit_batch(works.jobs(30)), works.submit(custom_id="alone")
    while works.painter.rendered < 12:
        works.turn()
    works.ledger._redis.flushall()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 30}
    assert single.status() is JobState.SUCCEEDED
    assert works.painter.rendered == 31


def test_a_lost_hint_is_given_again(works):
    batch = works.client.submit_batch(works.jobs(4))
    works.post.lost = True
    works.turn()
    works.post.lost = False
    assert not works.turn()
    works.look_now()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 4}


def test_two_dispatchers_index_and_hint_every_job_once(works):
    batch = works.client.submit_batch(works.jobs(30))
    other = works.another_dispatcher()
    for dispatcher in (works.dispatcher, other) * 3:
        dispatcher.round()
    hinted = [ref.job_id for refs in works.post.hints for ref in refs]
    assert len(hinted) == len(set(hinted)) == 30
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 30}


# Steered


def test_a_paused_batch_waits_and_goes_on(works):
    batch = works.client.submit_batch(works.jobs(5))
    batch.pause()
    assert not works.turn()
    assert batch.status().paused
    batch.resume()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 5}


def test_of_a_canceled_batch_nothing_more_is_rendered(works):
    batch = works.client.submit_batch(works.jobs(40))
    while works.painter.rendered < 8:
        works.turn()
    rendered = works.painter.rendered
    batch.cancel()
    summary = works.work_off(batch)
    assert summary.canceled and summary.counts == {JobState.SUCCEEDED: rendered, JobState.CANCELED: 40 - rendered}
    assert works.painter.rendered == rendered
    assert {result.error.code for result in batch.results() if result.error} == {"Canceled"}


def test_a_batch_that_is_over_is_not_marked_canceled_so_that_it_can_be_retried(works):
    batch = works.client.submit_batch(works.jobs(3))
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    works.work_off(batch)
    assert not batch.cancel() and not batch.status().canceled
    assert batch.retry_failed() == 3
    works.painter.before = lambda request: None
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 3}


def test_a_batch_that_was_canceled_while_the_index_was_lost_stays_canceled(works):
    batch = works.client.submit_batch(works.jobs(6))
    works.ledger._redis.flushall()
    batch.cancel()
    assert works.work_off(batch).counts == {JobState.CANCELED: 6}


def test_a_running_job_of_a_canceled_batch_stops_at_a_step(works):
    batch = works.client.submit_batch(works.jobs(1))

    def slow(request):
        batch.cancel()
        for _ in range(100):
            time.sleep(0.05)
            request.on_step()

    works.painter.before = slow
    works.turn()
    assert works.painter.rendered == 0
    assert works.work_off(batch).counts == {JobState.CANCELED: 1}


def test_failed_jobs_get_another_generation(works):
    works.painter.before = lambda request: (_ for _ in ()).throw(
        InvalidParameter("prompt", "is bad") if request.job.prompt == "bad" else KeyError("x")
    )
    jobs = [*works.jobs(2, prompt="bad"), *works.jobs(3)]
    batch = works.client.submit_batch(jobs)
    assert works.work_off(batch).counts == {JobState.FAILED: 5}
    works.painter.before = lambda request: None
    assert batch.retry_failed(codes=frozenset({"InternalError"})) == 3
    assert batch.status().counts == {JobState.FAILED: 2, JobState.QUEUED: 3}
    assert works.work_off(batch).counts == {JobState.FAILED: 2, JobState.SUCCEEDED: 3}
    assert [result.generation for result in batch.results()] == [0, 0, 1, 1, 1]
    works.ledger._redis.flushall()
    assert batch.retry_failed() == 2
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 5}
    assert works.painter.rendered == 5


def test_a_retry_is_not_forgotten_with_the_index(works):
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    batch = works.client.submit_batch(works.jobs(3))
    works.work_off(batch)
    works.painter.before = lambda request: None
    assert batch.retry_failed() == 3
    works.ledger._redis.flushall()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 3}


def test_dead_jobs_are_listed_by_the_store(works):
    works.painter.before = lambda request: (_ for _ in ()).throw(KeyError("x"))
    batch = works.client.submit_batch(works.jobs(2))
    works.work_off(batch)
    dead = [
        json.loads(works.store.get(info.uri, max_bytes=10**6).data)
        for info in works.store.list(keys.graveyard(works.root))
    ]
    assert [entry["error"]["code"] for entry in dead] == ["InternalError"] * 2
    assert {entry["ref"]["batch_id"] for entry in dead} == {batch.id}


def test_a_tenant_over_its_quota_is_told_to_try_later(local_store, redis_url, tmp_path):
    works = Works(local_store, f"file://{tmp_path / 'store'}", redis_url, tenant_quota=10)
    batch = works.client.submit_batch(works.jobs(10))
    for submit in (lambda: works.submit(), lambda: works.client.submit_batch(works.jobs(1))):
        with pytest.raises(QuotaExceeded, match="try later"):
            submit()
    works.work_off(batch)
    works.submit()


def test_jobs_that_wait_for_the_store_are_tried_again_and_none_is_lost(works, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)
    failures = count()
    works.painter.before = lambda request: (
        (_ for _ in ()).throw(StoreUnavailable("503")) if next(failures) % 3 == 0 else None
    )
    batch = works.client.submit_batch(works.jobs(20))
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 20}


# Shards


def test_refs_lie_where_the_lines_are(works):
    jobs = works.jobs(MAX_JOBS + 5)
    shards = list(shards_of(jobs))
    assert [shard.jobs for shard in shards] == [MAX_JOBS, 5]
    for shard in shards:
        for ref in refs_in(shard.data, "default", "b", shard.number):
            line = json.loads(shard.data[ref.offset : ref.offset + ref.length])
            assert ref.job_id == keys.job_id("default", "b", line["custom_id"])


def test_a_damaged_batch_holds_up_nobody_else(works):
    damaged = works.client.submit_batch(works.jobs(3))
    works.store.put(
        keys.spec_shard(works.root, "default", damaged.id, 0), b"{", content_type="text/plain", create_only=False
    )
    good = works.client.submit_batch(works.jobs(3))
    works.ledger._redis.delete(keys.EPOCH)  # the walk over the store meets it, too
    assert works.work_off(good).counts == {JobState.SUCCEEDED: 3}
    assert damaged.status().counts == {JobState.QUEUED: 3}
