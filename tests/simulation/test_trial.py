"""What must hold in every run, and what the policy promises, at a small size."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import attrgetter

import pytest

from tests.benchmarks.trace_model import synthetic
from tests.simulation.arrivals import DAY, Device, Job, alike, day, run
from tests.simulation.cluster import Nodes
from tests.simulation.policy import Scaling, policies
from tests.simulation.report import Outcome, draw, seconds_spent, table
from tests.simulation.trial import SCRAPE, Trial

DRAIN = 900
STEADY = Nodes(life=math.inf)
TAKEN_OFTEN = Nodes(life=1200.0, unannounced=0.3, drain=5.0)
COLD_START = 3 * (STEADY.boot + STEADY.start)  # the slowest of a few dozen
POLICIES = policies(3.0, drain=DRAIN, most=30)
CHART = POLICIES[0]


def peak(trial: Trial) -> int:
    return max(sample.count for sample in trial.samples)


def finished(scaling: Scaling, jobs: list[Job], nodes: Nodes = STEADY, seed: int = 1) -> Trial:
    trial = Trial(scaling, nodes, seed)
    trial.run(jobs)
    return trial


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scaling", POLICIES, ids=attrgetter("name"))
def test_no_job_is_lost_and_every_second_is_accounted_for(scaling: Scaling, seed: int) -> None:
    jobs = [*day(synthetic(1500, seed), Device(), seed), *alike(400, 45.0, at=DAY)]
    trial = finished(scaling, jobs, TAKEN_OFTEN, seed)
    trial.env.run(until=trial.env.now + TAKEN_OFTEN.lease + 1)  # until the last lease has ended
    cluster, spent = trial.cluster, seconds_spent(trial)
    queue = cluster.queue
    assert cluster.preempted and spent["lost"], "nothing was tried"
    assert len(cluster.waits) == sum(not job.low for job in jobs)
    assert queue.left == {False: 0, True: len(queue.waiting())}
    assert queue.ended + len(queue.waiting()) == len(jobs)
    done = sum(job.seconds for job in jobs) - sum(job.left for job in queue.waiting())
    assert spent["rendering"] == pytest.approx(done)
    assert spent.total() == pytest.approx(sum(worker.gone - worker.launched for worker in cluster.workers))


def test_a_seed_is_a_run() -> None:
    def outcome(seed: int) -> Outcome:
        return Outcome.of(finished(CHART, day(synthetic(600, 1), Device(), 1), TAKEN_OFTEN, seed), DRAIN)

    assert outcome(1) == outcome(1) != outcome(2)


def test_a_backlog_is_worked_off_in_the_time_that_was_promised_and_not_without_the_hold() -> None:
    """It asks for 14 workers. Without the hold ever fewer are kept for what is left."""
    jobs, without = finished(CHART, [*alike(6000, 2.0)]), replace(CHART, down_window=0)
    assert peak(jobs) == 14
    assert max(jobs.cluster.waits) <= DRAIN + COLD_START
    assert max(finished(without, [*alike(6000, 2.0)]).cluster.waits) > 1.5 * max(jobs.cluster.waits)


def test_the_same_work_calls_the_same_workers_however_many_jobs_it_is() -> None:
    many, few = ([*alike(8000, 1.0)], [*alike(800, 10.0)])
    assert abs(peak(finished(CHART, many)) - peak(finished(CHART, few))) <= 1
    by_length = POLICIES[3]
    assert peak(finished(by_length, [*alike(8000, 1.0)])) == 27
    assert peak(finished(by_length, [*alike(800, 10.0)])) == 3


def test_the_dispatchers_mean_sees_sooner_than_that_of_all_jobs_that_they_became_larger() -> None:
    jobs = [*alike(20_000, 0.5), *alike(500, 20.0, at=DAY)]
    worst = {scaling.name: max(finished(scaling, [replace(job) for job in jobs]).cluster.waits) for scaling in POLICIES}
    chart, lasting, exact = (worst[scaling.name] for scaling in POLICIES[:3])
    assert exact <= DRAIN + COLD_START < lasting
    assert exact <= chart < lasting / 1.5


def test_low_work_alone_calls_nobody_and_is_done_by_those_that_others_called() -> None:
    alone = finished(CHART, [*alike(100, 5.0, low=True)])
    assert not alone.cluster.workers and len(alone.cluster.queue.waiting()) == 100
    both = finished(CHART, [*alike(100, 5.0, low=True), *alike(1, 5.0, at=600.0)])
    assert peak(both) == 1
    assert 0 < len(both.cluster.queue.waiting()) < 100, "the one worker does them until its cooldown is over"


def test_after_the_last_job_all_nodes_go() -> None:
    trial = finished(CHART, [*alike(900, 2.0)])
    last = max(trial.cluster.waits)
    most = CHART.cooldown + CHART.polling + 2 * SCRAPE + STEADY.linger
    assert 0 < max(worker.gone for worker in trial.cluster.workers) - last <= most


def test_after_a_notice_a_long_job_is_saved_and_goes_on_where_it_was() -> None:
    nodes = replace(TAKEN_OFTEN, unannounced=0.0, life=300.0)
    trial = finished(CHART, [*alike(12, 400.0)], nodes)
    spent = seconds_spent(trial)
    assert trial.cluster.preempted > 5 and spent["saving"] and not spent["lost"]
    assert spent["rendering"] == pytest.approx(12 * 400.0)


def test_a_run_is_a_job_an_image(tmp_path) -> None:
    mix = synthetic(200, 1)
    trials = [finished(scaling, run(mix, 300, Device(), 1)) for scaling in POLICIES]
    assert {trial.cluster.images for trial in trials} == {300}
    rows = table([Outcome.of(trial, DRAIN) for trial in trials]).splitlines()
    assert len(rows) == 2 + len(POLICIES) and {row.count("|") for row in rows} == {12}
    draw(tmp_path / "plot.png", {"a run": trials})
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
