"""How many hints are out follows the speed at which jobs end."""

from farm.dispatcher.pace import LEAST_WINDOW, MOST_WINDOW, Pace
from farm.queue import MAX_HINT


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def run(rate, seconds, every=0.5):
    clock = Clock()
    pace = Pace(now=clock)
    for step in range(int(seconds / every) + 1):
        clock.seconds = step * every
        pace.seen(int(rate * clock.seconds))
    return pace, clock


def test_a_slow_model_gets_single_hints_and_a_small_window():
    pace, _ = run(rate=2, seconds=20)
    assert (pace.hint_size, pace.window) == (1, LEAST_WINDOW)


def test_a_fast_model_gets_hints_of_many_jobs_and_a_wide_window():
    pace, _ = run(rate=2000, seconds=20)
    assert 90 <= pace.hint_size <= 100 and 3800 <= pace.window <= 4000


def test_neither_grows_without_end():
    pace, _ = run(rate=10**6, seconds=20)
    assert (pace.hint_size, pace.window) == (MAX_HINT, MOST_WINDOW)


def test_a_counter_that_begins_anew_is_no_negative_speed():
    pace, clock = run(rate=100, seconds=10)
    clock.seconds += 1
    pace.seen(0)
    assert pace.rate > 0
    clock.seconds += 1
    pace.seen(100)
    assert 80 < pace.rate < 120


def test_speed_is_forgotten_when_nothing_ends():
    pace, clock = run(rate=1000, seconds=10)
    clock.seconds += 60
    pace.seen(10_000)
    assert pace.hint_size == 1
