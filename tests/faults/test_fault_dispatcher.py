"""Dispatchers that die, stand still or are two; more work than the farm can do; ends that come from outside."""

import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from farm import keys
from farm.queue import RENDER, make_app
from farm.states import JobState
from tests.conftest import new_bucket
from tests.faults.desk import desk_with


@pytest.fixture(scope="module")
def desk(tmp_path_factory, s3_server):
    folder = tmp_path_factory.mktemp("dispatcher")
    with desk_with(folder, s3_server, new_bucket(s3_server), dispatchers=2) as there:
        yield there


@pytest.fixture(autouse=True)
def at_work(desk):
    desk.ready()


def tell(children, number):
    for child in children:
        child.signal(number)


def test_without_any_dispatcher_work_is_accepted_and_done_when_one_is_back(desk):
    tell(desk.fleet.dispatchers, signal.SIGSTOP)
    handles = [desk.submit(f"nobody-{number}") for number in range(10)]
    batch = desk.client.submit_batch([desk.job(f"nobody-b-{n}", 0.02) for n in range(10)], tenant="anna")
    time.sleep(3)
    assert not any(handle.peek() for handle in handles)
    tell(desk.fleet.dispatchers, signal.SIGCONT)
    assert {desk.ended(handle).status for handle in handles} == {JobState.SUCCEEDED}
    desk.wait(lambda: len(list(batch.results())) == 10, 30, "end of the batch")


def test_two_dispatchers_hint_each_job_once(desk):
    handles = [desk.submit(f"two-{number}", 0.02) for number in range(30)]
    for handle in handles:
        assert desk.ended(handle, 60).attempt == 1
    assert [len(desk.claims(handle)) for handle in handles] == [1] * 30


def test_one_of_two_is_killed_and_the_other_goes_on(desk):
    tell(desk.fleet.dispatchers[:1], signal.SIGKILL)
    handles = [desk.submit(f"one-left-{number}", 0.02) for number in range(10)]
    assert {desk.ended(handle).status for handle in handles} == {JobState.SUCCEEDED}


def hinted(desk):
    """Jobs that were hinted and that no worker has claimed."""
    with desk.fleet.redis.client() as client:
        return int(client.zcard(f"{keys.HINTED}sd15-inpaint"))


def test_ten_times_the_capacity_a_bounded_queue_and_fair_shares(desk):
    anna = desk.client.submit_batch([desk.job(f"many-{n:03d}", 0.05) for n in range(90)], tenant="anna")
    bert_job = {"tenant": "bert", "image": f"{desk.fleet.root}/in/bert.png"}
    desk.wait(lambda: any(True for _ in anna.results()), 30, "first result")
    bert = desk.client.submit_batch([desk.job(f"few-{n}", 0.05, **bert_job) for n in range(4)], tenant="bert")
    most = 0

    def bert_is_served():
        nonlocal most
        most = max(most, hinted(desk))
        return len(list(bert.results())) == 4

    desk.wait(bert_is_served, 60, "end of the small batch")
    assert len(list(anna.results())) < 80  # it came long before the end of what was there first
    assert 0 < most <= 64  # the window of a slow farm; the rest waits where priorities and shares still count
    anna.cancel()
    desk.wait(lambda: len(list(anna.results())) == 90, 60, "end of a canceled batch")


def test_canceled_in_the_queue_and_in_mid_job_there_is_one_end_and_it_is_the_true_one(desk):
    running = desk.submit("canceled-running", 10.0)
    desk.running(running)
    assert running.cancel() is JobState.CANCELED
    tell(desk.fleet.dispatchers, signal.SIGSTOP)
    queued = desk.submit("canceled-queued")
    assert queued.cancel() is JobState.CANCELED
    tell(desk.fleet.dispatchers, signal.SIGCONT)
    desk.at_rest()
    assert 0 < len(desk.steps(running)) < 20  # it stopped at a step
    for handle in (running, queued):
        assert desk.ended(handle).status is JobState.CANCELED
        assert not list(desk.fleet.store.list(f"{desk.fleet.root}/outputs/anna/{handle.batch_id}/"))


def test_a_deadline_that_passes_in_the_queue_takes_no_device_time(desk):
    tell(desk.fleet.dispatchers, signal.SIGSTOP)
    handle = desk.submit("late", 5.0, deadline=datetime.now(UTC) + timedelta(seconds=1))
    time.sleep(1.2)
    tell(desk.fleet.dispatchers, signal.SIGCONT)
    result = desk.ended(handle)
    assert (result.status, result.error.code) == (JobState.EXPIRED, "DeadlineExceeded")
    assert "denoise" not in result.timings


def test_scale_in_loses_nothing(desk):
    handles = [desk.submit(f"scaled-{number}", 0.4) for number in range(12)]
    desk.running(handles[0]).signal(signal.SIGTERM)
    results = [desk.ended(handle, 60) for handle in handles]
    assert {result.status for result in results} == {JobState.SUCCEEDED}
    assert {result.attempt for result in results} == {1}


def test_hints_that_are_none_are_dropped_and_the_next_job_runs(desk):
    app = make_app(desk.settings)
    for hint in ({}, {"jobs": 7}, [], "x", {"jobs": [["a"] * 9]}):
        app.send_task(RENDER, kwargs={"hint": hint}, queue=keys.queue("sd15-inpaint"))
    assert desk.ended(desk.submit("after-no-hints")).status is JobState.SUCCEEDED
    desk.at_rest()
