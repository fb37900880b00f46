"""The plan follows from the seed, and each fault is begun and ended when it says."""

import time
from collections import Counter
from itertools import pairwise

import pytest

from tests.faults.nemesis import Fault, Kind, Nemesis, kinds, plan


def test_the_same_seed_is_the_same_plan():
    there = kinds(3)
    assert plan(5, 60, 2, there) == plan(5, 60, 2, there)
    assert plan(5, 60, 2, there) != plan(6, 60, 2, there)


@pytest.mark.parametrize("seed", range(20))
def test_each_round_holds_every_kind_once(seed):
    there = kinds(3)
    faults = plan(seed, 200, 2, there)
    rounds = [faults[at : at + len(there)] for at in range(0, len(faults), len(there))]
    assert len(rounds) >= 5
    for round_ in rounds[:-1]:
        assert Counter(fault.kind for fault in round_) == Counter(list(there))
    assert all(first.at < second.at for first, second in pairwise(faults))


def test_a_worker_is_paused_for_longer_than_its_lease():
    there = kinds(3)
    pauses = [fault.seconds for fault in plan(1, 500, 2, there) if fault.kind == "worker SIGSTOP"]
    assert pauses and min(pauses) > 3


def recording(log):
    def kind(name, on=""):
        return Kind(lambda fleet, fault: log.append(f"+{name}"), lambda fleet, fault: log.append(f"-{name}"), on=on)

    return {"a": kind("a"), "b": kind("b", "wire"), "c": kind("c", "wire")}


def ticked(nemesis, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        nemesis.tick()
        time.sleep(0.005)


def test_faults_begin_and_end_in_time():
    log = []
    nemesis = Nemesis(None, recording(log), [Fault("a", 0.05, 0.1, 0), Fault("b", 0.1, 0.2, 0)])
    ticked(nemesis, 0.4)
    assert log == ["+a", "+b", "-a", "-b"]
    assert [0.05 < done.end - done.begin < 0.4 for done in nemesis.done] == [True, True]


def test_a_later_fault_of_the_same_thing_ends_the_earlier_one():
    log = []
    nemesis = Nemesis(None, recording(log), [Fault("b", 0.0, 9, 0), Fault("a", 0.02, 9, 0), Fault("c", 0.04, 9, 0)])
    ticked(nemesis, 0.1)
    assert log == ["+b", "+a", "-b", "+c"]
    nemesis.finish()
    assert log[4:] == ["-a", "-c"]


def test_the_index_counts_as_lost_from_beginning_to_end():
    lossy = Kind(lambda fleet, fault: None, loses_index=True)
    harmless = Kind(lambda fleet, fault: None)
    nemesis = Nemesis(None, {"x": lossy, "y": harmless}, [Fault("x", 0.0, 0.05, 0), Fault("y", 0.0, 0.05, 0)])
    ticked(nemesis, 0.1)
    ((begin, end),) = nemesis.resets()
    assert 0.04 < end - begin < 0.5
