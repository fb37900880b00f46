"""One fault of the object store each: refusing, silent, slow, losing its answers; and deaths between two writes."""

import json
import signal
import time
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from farm import keys
from farm.schemas import JobResult
from farm.states import JobState
from tests.conftest import new_bucket
from tests.faults.desk import LEASE_SECONDS, desk_with
from tests.faults.proxy import SLOW_DOWN, Link


@pytest.fixture(scope="module")
def desk(tmp_path_factory, s3_server):
    folder = tmp_path_factory.mktemp("store")
    with desk_with(folder, s3_server, new_bucket(s3_server), FARM_MAX_ATTEMPTS="20") as there:
        yield there


@pytest.fixture(autouse=True)
def whole_again(desk):
    desk.ready()
    yield
    desk.fleet.s3_proxy.heal()


def test_503_is_tried_again_and_the_job_succeeds(desk):
    desk.fleet.s3_proxy.up = Link(answer=SLOW_DOWN, answer_chance=0.5)
    handles = [desk.submit(f"refused-{number}") for number in range(4)]
    desk.wait(lambda: any(len(desk.claims(handle)) > 1 for handle in handles), 30, "second attempt")
    desk.fleet.s3_proxy.heal()
    results = [desk.ended(handle, 60) for handle in handles]
    assert {result.status for result in results} == {JobState.SUCCEEDED}
    assert max(result.attempt for result in results) > 1
    assert desk.fleet.s3_proxy.answers > 0


def test_a_store_that_falls_silent_is_timed_out_and_tried_again(desk):
    handle = desk.submit("silent", 1.5)
    desk.running(handle)
    desk.fleet.s3_proxy.down = Link(swallow=True)
    time.sleep(3)
    desk.fleet.s3_proxy.heal()
    assert desk.ended(handle, 60).status is JobState.SUCCEEDED
    assert len(desk.results_of(handle)) == 1


def test_a_body_that_takes_longer_than_the_lease_keeps_it(desk):
    noise = np.random.default_rng(0).integers(0, 256, (530, 530, 3), dtype=np.uint8)
    mask = Image.new("L", (530, 530), 0)
    mask.paste(255, (100, 100, 200, 200))
    root = desk.fleet.root
    for name, picture in {"noise.png": Image.fromarray(noise), "noise-mask.png": mask}.items():
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        desk.fleet.store.put(f"{root}/in/{name}", buffer.getvalue(), content_type="image/png", create_only=False)
    desk.fleet.s3_proxy.down = Link(bandwidth=300_000)
    handle = desk.submit("slow-body", image=f"{root}/in/noise.png", mask=f"{root}/in/noise-mask.png")
    desk.running(handle)
    time.sleep(2 * LEASE_SECONDS)
    desk.fleet.s3_proxy.heal()  # what follows is quick
    result = desk.ended(handle, 60)
    assert result.timings["fetch"] > LEASE_SECONDS
    assert (result.status, result.attempt) == (JobState.SUCCEEDED, 1)
    assert len(desk.claims(handle)) == 1


def test_answers_that_are_lost_after_the_write_are_adopted_or_found(desk):
    desk.fleet.s3_proxy.down = Link(cut=0.15)
    handles = [desk.submit(f"unheard-{number}") for number in range(6)]
    desk.wait(lambda: desk.fleet.s3_proxy.cuts > 5, 30, "answers that were lost")
    desk.fleet.s3_proxy.heal()
    for handle in handles:
        assert desk.ended(handle, 60).status is JobState.SUCCEEDED
        assert len(desk.results_of(handle)) == 1


def test_a_worker_that_died_after_the_result_and_before_the_index_leaves_no_work(desk):
    for child in desk.fleet.workers:
        child.signal(signal.SIGSTOP)
    handle = desk.submit("ended-already")
    result = JobResult(
        job_id=handle.id,
        tenant="anna",
        batch_id=handle.batch_id,
        custom_id="ended-already",
        status=JobState.SUCCEEDED,
        model="sd15-inpaint",
        image=handle.job.image,
        finished_at=datetime.now(UTC),
    )
    uri = keys.result(desk.fleet.root, "anna", handle.batch_id, handle.id, 0)
    desk.fleet.store.put(uri, result.to_json(), content_type="application/json", create_only=True)
    for child in desk.fleet.workers:
        child.signal(signal.SIGCONT)
    desk.at_rest()
    assert handle.peek() == result
    assert not list(desk.fleet.store.list(f"{desk.fleet.root}/outputs/anna/{handle.batch_id}/"))


class ProducerDied(BaseException):
    """As a kill would: nothing catches it."""


def died(*_, **__):
    raise ProducerDied


def test_a_producer_that_died_between_spec_and_index_the_job_is_found(desk, monkeypatch):
    monkeypatch.setattr(desk.client, "_look_again_in", 2.0)
    with monkeypatch.context() as dying:
        dying.setattr(desk.client._ledger, "enqueue", died)
        with pytest.raises(ProducerDied):
            desk.client.submit(desk.job("unindexed"), idempotency_key="unindexed")
    batch = keys.batch_id("anna", "unindexed", single=True)
    prefix = f"{desk.fleet.root}/results/anna/{batch}/"
    desk.wait(lambda: bool(list(desk.fleet.store.list(prefix))), 30, "result of a job that nobody indexed")


def test_a_producer_that_died_in_mid_batch_nothing_of_it_is_rendered_until_it_comes_back(desk, monkeypatch):
    jobs = [desk.job(f"half-{number:02d}", 0.02) for number in range(12)]
    monkeypatch.setattr(desk.client, "_look_again_in", 2.0)
    with monkeypatch.context() as dying:
        dying.setattr(desk.client, "_create", dying_at_the_footer(desk.client._create))
        with pytest.raises(ProducerDied):
            desk.client.submit_batch(jobs, tenant="anna", idempotency_key="half")
    batch = keys.batch_id("anna", "half", single=False)
    assert list(desk.fleet.store.list(f"{desk.fleet.root}/specs/anna/{batch}/"))
    time.sleep(4)
    assert not list(desk.fleet.store.list(f"{desk.fleet.root}/results/anna/{batch}/"))
    again = desk.client.submit_batch(jobs, tenant="anna", idempotency_key="half")
    assert again.id == batch
    desk.wait(lambda: len(list(again.results())) == 12, 60, "end of the batch")
    assert {result.status for result in again.results()} == {JobState.SUCCEEDED}


def dying_at_the_footer(create):
    def dying(uri, *arguments):
        if uri.endswith("/batch.json"):
            raise ProducerDied
        return create(uri, *arguments)

    return dying


def test_a_spec_of_an_older_release_is_read(desk):
    """What release 0.1.0 wrote: every field, in the order of that day."""
    job = json.loads(desk.job("old").to_json())
    line = json.dumps(job, separators=(",", ":")).encode() + b"\n"
    batch = "0" * 32
    uri = keys.spec_shard(desk.fleet.root, "anna", batch, keys.SINGLE)
    desk.fleet.store.put(uri, line, content_type="application/x-ndjson", create_only=True)
    desk.client._batches.announce("anna", batch, look_again_in=0.0)
    prefix = f"{desk.fleet.root}/results/anna/{batch}/"
    desk.wait(lambda: bool(list(desk.fleet.store.list(prefix))), 30, "result of an old spec")
    (info,) = desk.fleet.store.list(prefix)
    result = JobResult.from_json(desk.fleet.store.get(info.uri, max_bytes=1 << 20).data)
    assert (result.status, result.custom_id) == (JobState.SUCCEEDED, "old")
