"""What a job does where another has written under its outputs' names: fail, leave it, or write beside it."""

import pytest

from farm.errors import StoreUnavailable
from farm.schemas import InpaintJob
from farm.states import JobState
from producer.testing import FakeFarm
from tests.conftest import store_at
from tests.integration.test_runner import Bench


class FakeBench:
    """The farm in memory, asked as a bench is."""

    def __init__(self):
        self.farm = FakeFarm()
        self.store = self.farm.store
        self.fields = {"image": self.farm.photo("photo.png"), "mask": self.farm.mask("mask.png")}

    def uri(self, name):
        return f"s3://fake/{name}"

    def put(self, name, data):
        return self.farm.put(name, data)

    def submit(self, **fields):
        return self.farm.client().submit(InpaintJob(**{**self.fields, **fields}))

    def run(self, handle):
        return handle.status()


@pytest.fixture
def bench(any_store, redis_url):
    return Bench(any_store.store, any_store.url, redis_url)


@pytest.fixture(params=["local", "s3", "in memory"])
def any_bench(request, tmp_path):
    if request.param == "in memory":
        return FakeBench()
    place = store_at(request.param, request, tmp_path)
    return Bench(place.store, place.url, request.getfixturevalue("redis_url"))


def rendered(bench):
    return len(bench.farm.rendered) if isinstance(bench, FakeBench) else bench.painter.rendered


def pictures(bench):
    return {info.uri.rpartition("/")[2]: info.etag for info in bench.store.list(bench.uri("out/"))}


def run(bench, if_exists, **fields):
    handle = bench.submit(custom_id="a", output=bench.uri("out/"), if_exists=if_exists, **fields)
    state = bench.run(handle)
    return state, handle.result(timeout=1) if state is JobState.SUCCEEDED else handle.peek()


def test_it_fails_by_default_and_skips_or_versions_when_told_to(any_bench):
    bench = any_bench
    first = run(bench, "fail")[1]
    before = pictures(bench)
    state, result = run(bench, "fail")
    assert (state, result.error.code) == (JobState.FAILED, "OutputExists")
    assert "not this job's; choose another output" in result.error.message

    count = rendered(bench)
    state, result = run(bench, "skip")
    assert state is JobState.SUCCEEDED and not result.outputs and rendered(bench) == count
    assert first.outputs[0].uri in result.warnings[0] and "skip" in result.warnings[0]
    assert pictures(bench) == before

    versions = [run(bench, "version")[1] for _ in range(2)]
    names = [result.outputs[0].uri.rpartition("/")[2] for result in versions]
    assert names == [f"a.{result.job_id[:12]}.png" for result in versions]
    assert pictures(bench).keys() == before.keys() | set(names)
    assert all(result.receipt.max_abs_diff_outside == 0 for result in versions)


def test_skip_counts_on_no_picture_that_its_job_did_not_come_to_name(bench, monkeypatch):
    """It is collected after a while: a job that had skipped for it would have nothing."""
    commit = bench.runner._verdicts.commit

    def spoilt(attempt, state, **_):
        return commit(attempt, JobState.CANCELED)

    monkeypatch.setattr(bench.runner._verdicts, "commit", spoilt)
    assert bench.run(bench.submit(custom_id="a", output=bench.uri("out/"))) is JobState.CANCELED
    monkeypatch.setattr(bench.runner._verdicts, "commit", commit)
    assert pictures(bench)
    for if_exists in ("skip", "fail"):
        state, result = run(bench, if_exists, seed=1 if if_exists == "skip" else 2)
        assert (state, result.error.code) == (JobState.FAILED, "OutputExists")
        assert "of a job that came to nothing; try this one again" in result.error.message


def test_a_picture_whose_job_has_not_ended_is_told_as_that(bench, monkeypatch):
    commit = bench.runner._verdicts.commit
    found = []

    def interrupted(*arguments, **named):
        """Others come between the outputs and their result."""
        monkeypatch.setattr(bench.runner._verdicts, "commit", commit)
        found.extend(run(bench, if_exists) for if_exists in ("skip", "fail"))
        return commit(*arguments, **named)

    monkeypatch.setattr(bench.runner._verdicts, "commit", interrupted)
    assert run(bench, "fail", seed=3)[0] is JobState.SUCCEEDED
    assert [result.error.code for _, result in found] == ["OutputExists"] * 2
    assert all("another job that has not ended; try this one again" in result.error.message for _, result in found)
    state, result = run(bench, "skip", seed=4)  # and then it is as they were told
    assert state is JobState.SUCCEEDED and not result.outputs


def test_skip_leaves_it_to_another_that_was_quicker(bench, monkeypatch):
    there = bench.runner._outputs.there
    quicker = []

    def late(ref, job):
        if not quicker:
            monkeypatch.setattr(bench.runner._outputs, "there", there)
            quicker.append(run(bench, "fail")[0])
            return ""
        return there(ref, job)

    monkeypatch.setattr(bench.runner._outputs, "there", late)
    state, result = run(bench, "skip", seed=5)
    assert quicker == [JobState.SUCCEEDED] and state is JobState.SUCCEEDED and not result.outputs


def test_skip_leaves_what_no_farm_wrote(any_bench):
    theirs = any_bench.put("out/a.png", b"somebody's")
    state, result = run(any_bench, "skip")
    assert state is JobState.SUCCEEDED and not result.outputs and result.receipt is None
    assert rendered(any_bench) == 0 and any_bench.store.get(theirs, max_bytes=99).data == b"somebody's"


def test_skip_renders_what_is_not_all_there(any_bench):
    bench = any_bench
    assert run(bench, "skip")[1].outputs  # nothing was
    state, result = run(bench, "skip", num_images_per_prompt=2)  # one of two is another's: they would not fit together
    assert (state, result.error.code) == (JobState.FAILED, "OutputExists")


def test_skip_adopts_what_an_earlier_attempt_of_its_own_wrote(bench, monkeypatch):
    handle = bench.submit(custom_id="a", output=bench.uri("out/"), if_exists="skip")
    commit = bench.runner._verdicts.commit

    def gone(*_, **__):
        monkeypatch.setattr(bench.runner._verdicts, "commit", commit)
        raise StoreUnavailable("gone")

    monkeypatch.setattr(bench.runner._verdicts, "commit", gone)
    assert bench.run(handle) is None
    written = pictures(bench)
    assert bench.run(handle) is JobState.SUCCEEDED
    assert len(handle.result(timeout=1).outputs) == 1 and pictures(bench) == written
