"""After Redis lost everything: what has ended is counted from the store, and nobody claims it again."""

import pytest

from farm import keys
from farm.errors import InvalidParameter
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(local_store, redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    return Works(local_store, f"file://{tmp_path / 'store'}", redis_url, max_indexed=20)


def half_done(works, jobs=40, bad=()):
    """A batch of which half has ended, its index lost; the ids of what has ended."""
    works.painter.before = lambda request: (
        (_ for _ in ()).throw(InvalidParameter("prompt", "is bad")) if request.job.prompt == "bad" else None
    )
    batch = works.client.submit_batch([*works.jobs(len(bad), prompt="bad"), *works.jobs(jobs - len(bad))])
    works.dispatcher.round()
    for refs in shards(works, batch):
        works.runner.run(refs[: len(refs) // 2])
    works.post.hints.clear()
    works.ledger._redis.flushall()
    return batch, ended(works, batch)


def ended(works, batch):
    prefix = keys.results(works.root, batch.tenant, batch.id)
    return {info.uri.removeprefix(prefix).split(".")[0] for info in works.store.list(prefix)}


def test_what_has_ended_is_counted_and_never_claimed_again(works, monkeypatch):
    batch, over = half_done(works, bad=range(3))
    claimed, lists, real = works.claims(monkeypatch), [], works.store.list
    monkeypatch.setattr(works.store, "list", lambda prefix: (lists.append(prefix), real(prefix))[1])
    summary = works.work_off(batch)
    assert summary.counts == {JobState.SUCCEEDED: 37, JobState.FAILED: 3}
    assert len(over) == 20
    assert set(claimed) == {ref.job_id for refs in shards(works, batch) for ref in refs} - over
    assert lists.count(keys.results(works.root, "default", batch.id)) == 1
    assert works.painter.rendered == 37
    assert works.ledger._redis.hgetall(keys.QUEUED) == {}


def shards(works, batch):
    footer = works.shelf.footer(batch.tenant, batch.id)
    return [works.shelf.refs(batch.tenant, batch.id, shard) for shard in range(footer.shards)]


def test_a_batch_that_was_all_done_but_summed_up_needs_no_worker(works, monkeypatch):
    with monkeypatch.context() as late:
        late.setattr(works.dispatcher._acceptance, "_conclude", lambda record: None)
        batch, _ = half_done(works, jobs=20)
        while len(ended(works, batch)) < 20:
            works.turn()
        works.ledger._redis.flushall()
    claimed = works.claims(monkeypatch)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 20}
    assert claimed == []


def test_a_job_that_ends_between_the_list_and_the_index_is_counted_once(works, monkeypatch):
    batch, over = half_done(works)
    late = next(ref for refs in shards(works, batch) for ref in refs if ref.job_id not in over)
    real = works.store.list

    def listed(prefix):
        yield from real(prefix)
        if prefix.startswith(keys.results(works.root, "default", batch.id)):
            works.runner.run([late])  # from a hint that was on its way when the index was lost

    monkeypatch.setattr(works.store, "list", listed)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 40}
    assert works.painter.rendered == 40


def test_a_job_that_runs_meanwhile_is_counted_once(works, monkeypatch):
    batch, over = half_done(works)
    running = next(ref for refs in shards(works, batch) for ref in refs if ref.job_id not in over)
    owner = works.ledger.claim([running], lease_seconds=30)[0].owner  # made from its hint
    works.ledger.beat([running], owner, lease_seconds=30)
    for _ in range(6):
        works.turn()
    works.ledger.release(running, owner, delay_seconds=0.0)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 40}


def test_retried_jobs_are_known_by_their_newest_generation(works, monkeypatch):
    batch, _ = half_done(works, jobs=20, bad=range(4))
    works.work_off(batch)
    works.painter.before = lambda request: None
    assert batch.retry_failed() == 4
    works.ledger._redis.flushall()
    works.store.delete(keys.summary(works.root, "default", batch.id))
    claimed = works.claims(monkeypatch)
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 20}
    assert len(set(claimed)) == 4


def test_two_dispatchers_recover_one_batch_once(works):
    batch, _ = half_done(works)
    other = works.another_dispatcher()
    for _ in range(4):
        for dispatcher in (works.dispatcher, other):
            dispatcher.round()
            dispatcher._reconciling.join()
        for dispatcher in (works.dispatcher, other):
            dispatcher._recovering.join()
    assert works.work_off(batch).counts == {JobState.SUCCEEDED: 40}
    assert works.painter.rendered == 40


def test_a_damaged_shard_holds_up_no_other_batch(works):
    damaged, _ = half_done(works, jobs=20)
    uri = keys.spec_shard(works.root, "default", damaged.id, 1)
    works.store.put(uri, b"{", content_type="text/plain", create_only=False)
    good = works.client.submit_batch(works.jobs(5))
    works.ledger._redis.flushall()
    assert works.work_off(good).counts == {JobState.SUCCEEDED: 5}
