"""The mean by which the dispatcher tells how much work is left."""

import pytest

from farm.dispatcher.job_seconds import LATELY, JobSeconds


def test_a_second_until_something_has_ended_and_then_what_it_took():
    seconds = JobSeconds()
    assert seconds.seen(0, 0.0) == 1.0
    assert seconds.seen(1, 8.0) == 8.0
    assert seconds.seen(1, 8.0) == 8.0
    assert seconds.seen(4, 14.0) == pytest.approx(3.5), "few: the mean of all"


def test_a_dispatcher_that_begins_to_lead_takes_the_mean_of_all():
    assert JobSeconds().seen(1_000_000, 3_000_000.0) == 3.0


def test_after_a_million_quick_jobs_large_ones_are_seen_within_some_hundreds():
    seconds = JobSeconds()
    finished, spent = 1_000_000, 1_000_000.0
    seconds.seen(finished, spent)
    for _ in range(2 * LATELY):
        finished, spent = finished + 1, spent + 20.0
        seconds.seen(finished, spent)
    assert 17.0 < seconds.mean < 20.0
    assert seconds.seen(finished + LATELY, spent + 2.0 * LATELY) == pytest.approx(2.0)


def test_a_redis_that_began_anew_is_no_negative_work():
    seconds = JobSeconds()
    seconds.seen(1000, 5000.0)
    assert seconds.seen(2, 6.0) == pytest.approx(3.0)
