"""Outputs that no result names, deleted; and everything that must not be. On a folder and on the real S3 server."""

from unittest.mock import Mock

import pytest

from farm import keys, metrics
from farm.dispatcher.lead import Lead
from farm.dispatcher.orphans import Orphans
from farm.errors import InvalidParameter, StoreUnavailable
from farm.states import JobState
from tests.integration.works import Works


@pytest.fixture
def works(any_store, redis_url):
    works = Works(any_store.store, any_store.url, redis_url, collect_seconds=0)
    works.orphans = orphans(works)
    return works


def orphans(works, grace=0.0):
    batches, shelf = works.batches, works.shelf
    return Orphans(batches, shelf, works.dispatcher.lead, every_seconds=60, grace_seconds=grace)


def dies_before_its_result(works, monkeypatch, refs):
    """A worker writes the outputs of these jobs, and no results."""
    with monkeypatch.context() as death:
        death.setattr(works.runner._verdicts, "commit", Mock(side_effect=StoreUnavailable("gone")))
        assert works.runner.run(refs) == {}


def fails(works, refs):
    """Another attempt fails before it writes anything."""
    works.painter.before = lambda request: (_ for _ in ()).throw(InvalidParameter("prompt", "is bad"))
    assert set(works.runner.run(refs).values()) == {JobState.FAILED}
    works.painter.before = lambda request: None


def left_over(works, monkeypatch, **fields):
    """A job that failed after a worker died with its outputs written; its handle, and the outputs."""
    handle = works.submit(num_inference_steps=1, **fields)
    dies_before_its_result(works, monkeypatch, [handle._ref])
    job, ref = handle.job, handle._ref
    uris = [keys.output(works.root, job, ref.batch_id, index) for index in range(job.num_images_per_prompt)]
    assert all(works.store.exists(uri) for uri in uris)
    fails(works, [ref])
    return handle, uris


def test_what_a_dead_worker_left_of_a_job_that_failed_is_deleted(works, monkeypatch):
    own_place = works.uri("elsewhere/")
    found = [
        *left_over(works, monkeypatch, custom_id="a", num_images_per_prompt=2)[1],
        *left_over(works, monkeypatch, custom_id="b", output=own_place)[1],
    ]
    before = metrics.orphans._value.get()
    assert works.orphans.collect() == 3
    assert not any(works.store.exists(uri) for uri in found)
    assert metrics.orphans._value.get() == before + 3
    assert works.orphans.collect() == 0


def test_of_a_canceled_job_too(works, monkeypatch):
    handle = works.submit(custom_id="a", num_inference_steps=1)
    dies_before_its_result(works, monkeypatch, [handle._ref])
    assert handle.cancel() is JobState.CANCELED
    assert works.orphans.collect() == 1


def test_not_before_the_grace_period_is_over(works, monkeypatch):
    _, (uri,) = left_over(works, monkeypatch)
    assert orphans(works, grace=3600).collect() == 0
    assert works.store.exists(uri)
    assert works.orphans.collect() == 1  # what was too young then is looked at again


def test_what_others_wrote_under_the_same_name_is_left_alone(works, monkeypatch):
    place = works.uri("out/")
    good = works.submit(custom_id="same", output=place, num_inference_steps=1)
    assert works.run(good) is JobState.SUCCEEDED
    theirs = works.put("out/foreign.png", b"somebody's")
    for name in ("same", "foreign"):
        handle = works.submit(custom_id=name, output=place, num_inference_steps=1)
        assert works.run(handle) is JobState.FAILED
        assert handle.peek().error.code == "OutputExists"
    assert works.orphans.collect() == 0
    assert works.store.get(theirs, max_bytes=99).data == b"somebody's"
    assert works.store.exists(good.peek().outputs[0].uri)


def test_outputs_of_jobs_that_succeeded_or_have_not_ended_are_left_alone(works, monkeypatch):
    good, running = (works.submit(custom_id=name, num_inference_steps=1) for name in ("good", "running"))
    works.run(good)
    dies_before_its_result(works, monkeypatch, [running._ref])
    assert works.orphans.collect() == 0
    assert works.store.exists(good.peek().outputs[0].uri)
    assert works.run(running) is JobState.SUCCEEDED  # and adopts what is there
    works.ledger._redis.delete(keys.COLLECTED)
    assert works.orphans.collect() == 0
    assert works.store.exists(running.peek().outputs[0].uri)


def test_a_retry_keeps_its_outputs_and_the_failed_generations_go(works, monkeypatch):
    batch = works.client.submit_batch(works.jobs(3))
    works.dispatcher.round()
    refs = works.shelf.refs("default", batch.id, 0)
    dies_before_its_result(works, monkeypatch, refs[:2])
    fails(works, refs[:2])
    works.work_off(batch)
    assert batch.retry_failed() == 2
    works.work_off(batch)
    outputs = [result.outputs[0].uri for result in works.shelf.results("default", batch.id)]
    assert works.orphans.collect() == 2
    assert all(works.store.exists(uri) for uri in outputs)
    assert [uri.endswith(".g1.png") for uri in outputs] == [True, True, False]


def test_what_a_spec_says_of_another_tenants_place_is_not_believed_without_the_metadata(works, monkeypatch):
    victim = works.submit(custom_id="victim", output=works.uri("rival/"), num_inference_steps=1)
    works.run(victim)
    thief = works.submit(custom_id="victim", output=works.uri("rival/"), tenant="thief", num_inference_steps=1)
    fails(works, [thief._ref])
    assert works.orphans.collect() == 0
    assert works.store.exists(victim.peek().outputs[0].uri)


def test_only_what_ended_since_the_last_pass_is_looked_at(works, monkeypatch):
    left_over(works, monkeypatch, custom_id="a")
    works.orphans.collect()
    works.batches.set_collected(works.batches.collected_at() + 3600)  # an hour goes by
    looked = []
    monkeypatch.setattr(works.orphans, "_look", lambda ref, until: looked.append(ref) or 0)
    works.orphans.collect()
    assert looked == []


def test_it_is_done_when_it_is_due_and_by_the_one_that_leads(works):
    due = works.orphans.due
    assert due()
    works.orphans.collect()
    assert not due()
    works.orphans._not_before = 0.0
    assert not due()  # another one did it lately
    works.batches.set_collected(0.0)
    assert due()
    works.ledger._redis.delete(keys.LEADER)
    assert Lead(works.dispatcher._window).held()
    assert not due()


def test_a_damaged_result_holds_up_nobody_and_deletes_nothing(works, monkeypatch):
    broken, (uri,) = left_over(works, monkeypatch, custom_id="broken")
    ref = broken._ref
    result = keys.result(works.root, ref.tenant, ref.batch_id, ref.job_id, 0)
    works.store.put(result, b"?", content_type="text/plain", create_only=False)
    left_over(works, monkeypatch, custom_id="other")
    assert works.orphans.collect() == 1
    assert works.store.exists(uri)
