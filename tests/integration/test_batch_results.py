"""Results rolled into shards when a batch is over: fewer reads, the same results, whatever happens on the way."""

import pytest

from farm import keys
from farm.dispatcher.lead import Lead
from farm.errors import StoreUnavailable
from farm.ledger import Window
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(local_store, redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr("farm.shards.MAX_JOBS", 10)
    return Works(local_store, f"file://{tmp_path / 'store'}", redis_url)


def rolled(works, batch, retries=0):
    """The batch's rolled shards, once there is nothing left to roll."""
    roll(works)
    assert works.batches.rolling() == []
    prefix = keys.rolled_prefix(works.root, batch.tenant, batch.id, retries)
    return list(works.store.list(prefix))


def roll(works):
    works.dispatcher._rolling.join()
    works.dispatcher._roller.roll_all()


def one_by_one(works, batch):
    """Each job's own result, in the order of the jobs."""
    later = works.shelf.generations(batch.tenant, batch.id)
    for shard in range(works.shelf.footer(batch.tenant, batch.id).shards):
        for ref in works.shelf.refs(batch.tenant, batch.id, shard, later):
            uri = keys.result(works.root, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
            yield works.store.get(uri, max_bytes=10**6).data


def read(works, batch):
    return [result.to_json() for result in works.shelf.results(batch.tenant, batch.id)]


def counted_reads(works, monkeypatch):
    """The addresses that are read from now on."""
    reads, get = [], works.store.get
    monkeypatch.setattr(works.store, "get", lambda uri, **options: (reads.append(uri), get(uri, **options))[1])
    return reads


def failing(works, names):
    def before(request):
        if request.job.custom_id in names:
            raise KeyError("x")

    works.painter.before = before


def test_a_batch_that_is_over_is_read_shard_by_shard(works, monkeypatch):
    jobs = works.jobs(25)
    batch = works.client.submit_batch(jobs)
    assert read(works, batch) == []
    works.work_off(batch)
    unrolled = list(one_by_one(works, batch))
    assert read(works, batch) == unrolled
    assert [info.uri[-12:] for info in rolled(works, batch)] == [f"{shard:05d}.ndjson" for shard in range(3)]
    assert works.shelf.summary("default", batch.id).results == keys.rolled_prefix(works.root, "default", batch.id, 0)
    reads = counted_reads(works, monkeypatch)
    assert read(works, batch) == unrolled
    assert len(reads) <= 3 + 3  # a shard each; footer, summary, the retry that there is not
    assert [result.custom_id for result in works.shelf.results("default", batch.id)] == [job.custom_id for job in jobs]


def test_a_dispatcher_that_dies_on_the_way_is_gone_on_from(works, monkeypatch):
    batch = works.client.submit_batch(works.jobs(30))
    works.work_off(batch)
    (kept, *_) = rolled(works, batch)
    for shard in (1, 2):
        works.store.delete(keys.rolled(works.root, "default", batch.id, 0, shard))
    whole = list(one_by_one(works, batch))
    assert read(works, batch) == whole  # half rolled, half not
    works.batches.roll_later("default", batch.id, 0)
    with monkeypatch.context() as death:
        death.setattr(works.store, "put", lambda *a, **k: (_ for _ in ()).throw(StoreUnavailable("503")))
        with pytest.raises(StoreUnavailable):
            works.dispatcher._roller.roll_all()
    assert works.batches.rolling() == [("default", batch.id, 0)]
    shards = rolled(works, batch)
    assert len(shards) == 3 and shards[0] == kept
    assert read(works, batch) == whole


def test_two_that_roll_at_once_write_the_same_once(works):
    batch = works.client.submit_batch(works.jobs(12))
    works.work_off(batch)
    before = rolled(works, batch)
    works.batches.roll_later("default", batch.id, 0)
    works.dispatcher._roller._there = lambda uri: False  # it looked before the other one had written
    assert rolled(works, batch) == before


def test_a_retry_is_rolled_anew_and_read_one_by_one_until_then(works):
    jobs = works.jobs(15)
    failing(works, {jobs[3].custom_id, jobs[12].custom_id})
    batch = works.client.submit_batch(jobs)
    works.work_off(batch)
    first = rolled(works, batch)
    works.painter.before = lambda request: None
    assert batch.retry_failed() == 2
    generations = [result.generation for result in works.shelf.results("default", batch.id)]
    assert generations == [0] * 13  # the two that are tried again have no result yet
    works.work_off(batch)
    assert len(rolled(works, batch, retries=1)) == 2
    assert [result.generation for result in works.shelf.results("default", batch.id)].count(1) == 2
    assert {result.status for result in works.shelf.results("default", batch.id)} == {JobState.SUCCEEDED}
    assert read(works, batch) == list(one_by_one(works, batch))
    assert rolled(works, batch) == first  # what was rolled before the retry is as it was


def test_what_was_to_be_rolled_when_it_was_retried_is_left(works):
    jobs = works.jobs(5)
    failing(works, {jobs[0].custom_id})
    Lead(Window(works.ledger._redis)).held()  # another dispatcher leads
    batch = works.client.submit_batch(jobs)
    works.work_off(batch)
    works.painter.before = lambda request: None
    batch.retry_failed()
    works.work_off(batch)
    assert works.batches.rolling() == [("default", batch.id, 0), ("default", batch.id, 1)]
    works.ledger._redis.delete(keys.LEADER)
    assert rolled(works, batch) == []
    assert len(rolled(works, batch, retries=1)) == 1


def test_only_the_one_that_leads_rolls(works):
    other = Lead(Window(works.ledger._redis))
    assert other.held()
    batch = works.client.submit_batch(works.jobs(5))
    works.work_off(batch)
    roll(works)
    assert works.batches.rolling() == [("default", batch.id, 0)]
    works.ledger._redis.delete(keys.LEADER)
    assert len(rolled(works, batch)) == 1


def test_after_a_flush_the_walk_names_what_is_left_to_roll(works):
    Lead(Window(works.ledger._redis)).held()
    batch = works.client.submit_batch(works.jobs(15))
    works.work_off(batch)
    works.ledger._redis.flushall()
    works.dispatcher._reconciler.whole()
    assert works.batches.rolling() == [("default", batch.id, 0)]
    assert len(rolled(works, batch)) == 2
    works.dispatcher._reconciler.whole()
    assert works.batches.rolling() == []


def test_results_too_large_to_roll_are_read_one_by_one(works, monkeypatch):
    monkeypatch.setattr("farm.dispatcher.rolling.MAX_ROLLED_BYTES", 1000)
    batch = works.client.submit_batch(works.jobs(12))
    works.work_off(batch)
    assert [info.size for info in rolled(works, batch)] == [0, 0]
    assert read(works, batch) == list(one_by_one(works, batch))


def test_a_batch_whose_result_is_gone_is_not_rolled_and_holds_up_nobody(works):
    Lead(Window(works.ledger._redis)).held()
    damaged, good = (works.client.submit_batch(works.jobs(3)) for _ in range(2))
    for batch in (damaged, good):
        works.work_off(batch)
    ref = works.shelf.refs("default", damaged.id, 0)[0]
    works.store.delete(keys.result(works.root, "default", damaged.id, ref.job_id, 0))
    works.ledger._redis.delete(keys.LEADER)
    assert rolled(works, damaged) == []
    assert len(rolled(works, good)) == 1
    assert len(read(works, damaged)) == 2
