"""The autoscaler's arithmetic, held against what KEDA and Kubernetes document."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tests.simulation.policy import Autoscaler, Limit, Reading, Scaling


@cache
def scaling(drain: int = 1800) -> Scaling:
    return Scaling.of_chart("the chart", most=40, drain=drain)


def backlog(seconds: float) -> Reading:
    return Reading(jobs=1, seconds=seconds, lasting=0, exact=0)


def test_it_is_the_object_that_the_chart_renders() -> None:
    found = scaling()
    assert (found.target, found.least, found.most, found.polling, found.cooldown) == (1800, 0, 40, 15, 300)
    assert found.up == (Limit(True, 100, 60), Limit(False, 4, 60))
    assert (found.up_window, found.down_window) == (0, 1800)
    assert found.metric(backlog(7.0)) == 7.0


def test_keda_starts_the_first_and_ends_all_after_the_cooldown() -> None:
    keda = Autoscaler(scaling()).keda
    assert keda(0, backlog(0), 0) == 0
    assert keda(15, backlog(0.1), 0) == 1
    assert keda(30, backlog(9e9), 7) == 7, "more than one is the HPA's"
    assert keda(330, backlog(0), 7) == 7
    assert keda(345, backlog(0), 7) == 0


def test_growth_is_at_most_the_double_or_four_more_a_minute() -> None:
    hpa, count, seen = Autoscaler(scaling()).hpa, 1, []
    for tick in range(20):
        count = hpa(15 * tick, backlog(1e6), count)
        seen.append(count)
    assert seen == [5] * 4 + [10] * 4 + [20] * 4 + [40] * 8


def test_what_is_within_a_tenth_of_the_target_changes_nothing() -> None:
    assert Autoscaler(scaling()).hpa(0, backlog(10.9 * 1800), 10) == 10
    assert Autoscaler(scaling()).hpa(0, backlog(11.1 * 1800), 10) == 12
    assert Autoscaler(scaling()).hpa(0, backlog(1e9), 0) == 0, "KEDA wakes it"


def test_a_count_is_kept_for_the_time_to_drain_and_then_halved_a_minute() -> None:
    hpa = Autoscaler(scaling()).hpa
    assert hpa(0, backlog(16 * 1800), 16) == 16
    for at in range(15, 1801, 15):
        assert hpa(at, backlog(60), 16) == 16
    count, seen = 16, []
    for at in range(1815, 2056, 15):
        count = hpa(at, backlog(60), count)
        seen.append(count)
    assert seen == [8] * 4 + [4] * 4 + [2] * 4 + [1] * 5


def test_without_a_window_it_follows_at_once() -> None:
    quick = replace(scaling(), down_window=0, down=(Limit(True, 100, 15),))
    assert Autoscaler(quick).hpa(0, backlog(60), 16) == 1
