"""One fault of a worker each: killed, told to end, stopped and continued, taken down by its own job."""

import signal
import time
from hashlib import sha256

import pytest

from farm.states import JobState
from tests.conftest import new_bucket
from tests.faults.desk import LEASE_SECONDS, desk_with
from worker.watchdog import STALLED


@pytest.fixture(scope="module")
def desk(tmp_path_factory, s3_server):
    folder = tmp_path_factory.mktemp("workers")
    settings = {"FARM_DRAIN_SECONDS": "3", "FARM_STALL_SECONDS": "3", "FARM_MAX_ATTEMPTS": "2"}
    with desk_with(folder, s3_server, new_bucket(s3_server), **settings) as there:
        yield there


@pytest.fixture(autouse=True)
def all_at_work(desk):
    desk.ready()


def test_kill_9_in_mid_step_a_new_attempt_within_the_lease_and_five_seconds(desk):
    handle = desk.submit("killed", 2.0)
    desk.running(handle).signal(signal.SIGKILL)
    desk.wait(lambda: len(desk.claims(handle)) == 2, LEASE_SECONDS + 5, "new attempt")
    result = desk.ended(handle)
    assert (result.status, result.attempt) == (JobState.SUCCEEDED, 2)
    assert len(desk.results_of(handle)) == 1


def test_sigterm_a_job_that_fits_is_finished_and_the_worker_ends_well(desk):
    handle = desk.submit("fits", 1.5)
    holder = desk.running(handle)
    holder.signal(signal.SIGTERM)
    result = desk.ended(handle)
    assert (result.attempt, result.worker) == (1, holder.name)
    desk.wait(lambda: holder.exits[-1:] == [0], 10, "end of the worker")


def test_sigterm_a_job_that_does_not_fit_is_saved_and_goes_on_elsewhere_uncharged(desk):
    handle = desk.submit("long", 6.0)
    holder = desk.running(handle)
    pid = holder.process.pid
    desk.wait(lambda: len(desk.steps(handle)) > 5, 20, "some steps")
    holder.signal(signal.SIGTERM)
    desk.wait(lambda: bool(desk.returns(handle)), 10, "job given back")
    desk.wait(lambda: holder.exits[-1:] == [0], 10, "end of the worker")
    result = desk.ended(handle)
    assert (result.status, result.attempt) == (JobState.SUCCEEDED, 1)
    assert len(desk.claims(handle)) == 2
    of_first = [note for note in desk.steps(handle) if note["pid"] == pid]
    told = [note["kind"] for note in of_first].index("draining")
    assert len(of_first) - told - 1 <= 1  # the step that it was in, and no other
    steps = [note["step"] for note in desk.steps(handle) if note["kind"] == "step"]
    assert steps == list(range(20))  # the second went on where the first was


def test_kill_9_during_the_drain_is_as_kill_9(desk):
    handle = desk.submit("drained-and-killed", 2.5)
    holder = desk.running(handle)
    holder.signal(signal.SIGTERM)
    time.sleep(0.5)
    holder.signal(signal.SIGKILL)
    result = desk.ended(handle)
    assert (result.status, result.attempt) == (JobState.SUCCEEDED, 2)


def test_a_worker_that_was_stopped_for_longer_than_its_lease_never_wins(desk):
    handle = desk.submit("stopped", 1.5)
    holder = desk.running(handle)
    holder.signal(signal.SIGSTOP)
    result = desk.ended(handle)
    holder.signal(signal.SIGCONT)
    assert result.attempt == 2
    assert result.worker != holder.name
    time.sleep(2.5)  # whatever the first one still wants to write, it has written
    output = desk.fleet.store.get(result.outputs[0].uri, max_bytes=1 << 20)
    assert sha256(output.data).hexdigest() == result.outputs[0].sha256
    assert handle.peek() == result
    assert len(desk.results_of(handle)) == 1
    assert desk.ended(desk.submit("after-the-stop")).status is JobState.SUCCEEDED


def test_a_job_that_takes_three_workers_down_is_dead_and_the_fleet_lives(desk):
    handle = desk.submit("poison", 0.2, prompt="kill")
    result = desk.ended(handle, 90)
    assert (result.status, result.error.code) == (JobState.FAILED, "WorkerCrashed")
    assert len(desk.claims(handle)) == 4  # three that it took down, and the one that says so
    assert desk.ended(desk.submit("after-the-poison")).status is JobState.SUCCEEDED


@pytest.mark.parametrize(("what", "code"), [("memory", "Resource"), ("exit", "InternalError")])
def test_what_escapes_a_job_leaves_a_worker_that_takes_the_next(desk, what, code):
    before = [child.process.pid for child in desk.fleet.workers if child.process is not None]
    handles = [desk.submit(f"{what}-{number}", 0.05, prompt=what) for number in range(4)]  # each place of each worker
    assert [desk.ended(handle, 90).error.code for handle in handles] == [code] * 4
    after = [desk.ended(desk.submit(f"after-{what}-{number}")) for number in range(6)]
    assert {result.status for result in after} == {JobState.SUCCEEDED}
    assert [child.process.pid for child in desk.fleet.workers if child.process is not None] == before


def test_a_device_that_stands_still_ends_its_process_and_the_next_job_is_clean(desk):
    handle = desk.submit("hanging", 0.2, prompt="hang")
    holder = desk.running(handle)
    desk.wait(lambda: holder.exits[-1:] == [STALLED], 15, "end of a worker that stands still")
    handle.cancel()
    assert desk.ended(desk.submit("after-the-hang")).status is JobState.SUCCEEDED
