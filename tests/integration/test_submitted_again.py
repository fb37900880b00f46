"""A batch that the index knows no more of, submitted or retried again: only what is left of it is done."""

import pytest

from farm import keys
from farm.errors import InvalidParameter
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(local_store, redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    return Works(local_store, f"file://{tmp_path / 'store'}", redis_url, webhook_hosts=("hooks.example",))


@pytest.fixture
def claimed(works, monkeypatch):
    return works.claims(monkeypatch)


def refuse_bad(request):
    if request.job.prompt == "bad":
        raise InvalidParameter("prompt", "is bad")


def notes(works):
    return list(works.store.list(keys.webhooks(works.root)))


def test_one_that_is_over_stays_over_and_is_told_of_once(works, claimed):
    jobs = works.jobs(25)
    hook = {"idempotency_key": "k", "webhook_url": "https://hooks.example/done"}
    batch = works.client.submit_batch(jobs, **hook)
    summary = works.work_off(batch)
    for note in notes(works):  # it is sent
        works.store.delete(note.uri)
    claimed.clear()
    again = works.client.submit_batch(jobs, **hook)
    assert works.batches.record(again.tenant, again.id) is None and works.ledger._redis.zcard(keys.DUE) == 0
    assert again.status() == summary
    works.look_now()
    works.turn()
    assert claimed == [] and notes(works) == []


def test_what_has_ended_is_counted_and_not_claimed_again(works, claimed):
    jobs = works.jobs(30)
    batch = works.client.submit_batch(jobs, idempotency_key="k")
    works.dispatcher.round()
    first = next(batch.refs())
    works.runner.run(first)
    works.post.hints.clear()
    works.ledger._redis.flushall()
    claimed.clear()
    again = works.client.submit_batch(jobs, idempotency_key="k")
    assert works.batches.record(again.tenant, again.id).reopened
    assert works.work_off(again).counts == {JobState.SUCCEEDED: 30}
    assert len(claimed) == 20 and not {ref.job_id for ref in first} & set(claimed)


def test_a_retry_without_a_summary_finds_its_jobs_and_runs_no_others(works, claimed):
    works.painter.before = refuse_bad
    batch = works.client.submit_batch([*works.jobs(4, prompt="bad"), *works.jobs(16)])
    works.work_off(batch)
    works.painter.before = lambda request: None
    works.ledger._redis.flushall()
    works.store.delete(keys.summary(works.root, batch.tenant, batch.id))
    claimed.clear()
    assert batch.retry_failed() == 4
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 20}
    assert len(claimed) == 4 and works.painter.rendered == 20


def test_a_retry_of_nothing_leaves_nothing_to_look_at(works):
    batch = works.client.submit_batch(works.jobs(3))
    summary = works.work_off(batch)
    assert batch.retry_failed() == 0
    works.painter.before = refuse_bad
    other = works.client.submit_batch(works.jobs(2, prompt="bad"))
    works.work_off(other)
    late = [ref for group in other.refs() for ref in group]
    assert other.retry_failed() == 2
    works.work_off(other)
    assert other.retry(late) == 0, "they have a later generation"
    assert works.ledger._redis.zcard(keys.DUE) == 0
    assert batch.status() == summary
