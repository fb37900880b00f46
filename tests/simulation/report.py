"""What the runs came to: a table in Markdown, and a picture of workers and backlog over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display

from matplotlib import pyplot

from tests.simulation.trial import Trial

HOUR = 3600.0
_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")  # Okabe and Ito: told apart by colour-blind readers
_STYLES = ("-", "--", ":", "-.", "-")


@dataclass(frozen=True)
class Outcome:
    """Of one run. Hours are of one node; waits are seconds from acceptance to result, of the jobs that may call
    workers; `late` are those that took longer than the time to drain and one cold start."""

    policy: str
    hours: float
    cost: float
    per_1000: float
    median: float
    p95: float
    drained: float
    late: float
    cold_starts: int
    preempted: int
    useful: float

    @classmethod
    def of(cls, trial: Trial, drain: float) -> Outcome:
        cluster = trial.cluster
        spent = seconds_spent(trial)
        hours = spent.total() / HOUR
        waits = sorted(cluster.waits)
        promised = drain + trial.nodes.boot + trial.nodes.start
        return cls(
            policy=trial.scaling.name,
            hours=hours,
            cost=hours * trial.nodes.price,
            per_1000=1000 * hours * trial.nodes.price / cluster.images,
            median=waits[len(waits) // 2],
            p95=waits[len(waits) * 95 // 100],
            drained=waits[-1],
            late=sum(wait > promised for wait in waits) / len(waits),
            cold_starts=len(cluster.workers),
            preempted=cluster.preempted,
            useful=spent["rendering"] / spent.total(),
        )


def seconds_spent(trial: Trial) -> Counter[str]:
    """Of all nodes, by what they went into."""
    total = Counter[str]()
    for worker in trial.cluster.workers:
        total.update(worker.spent)
    return total


def table(outcomes: Sequence[Outcome]) -> str:
    head = (
        "| scaling on | cost, $ | of 1,000 images, $ | node hours | rendering | median wait | 95 % | longest | late "
        "| cold starts | taken |\n|" + " --- |" * 11
    )
    rows = (
        f"| {one.policy} | {one.cost:.2f} | {one.per_1000:.3f} | {one.hours:.1f} | {one.useful:.0%} "
        f"| {_time(one.median)} | {_time(one.p95)} | {_time(one.drained)} | {one.late:.1%} "
        f"| {one.cold_starts} | {one.preempted} |"
        for one in outcomes
    )
    return "\n".join((head, *rows))


def _time(seconds: float) -> str:
    return f"{seconds / HOUR:.1f} h" if seconds >= 2 * HOUR else f"{seconds / 60:.0f} min"


def draw(path: Path, runs: Mapping[str, Sequence[Trial]]) -> None:
    """A column a workload: workers above, work left below."""
    figure, axes = pyplot.subplots(2, len(runs), figsize=(5.6 * len(runs), 6.4), sharex="col", squeeze=False)
    for column, (title, trials) in enumerate(runs.items()):
        workers, work = axes[0][column], axes[1][column]
        for trial, colour, style in zip(trials, _COLOURS, _STYLES, strict=True):
            hours = [sample.at / HOUR for sample in trial.samples]
            look = {"color": colour, "linestyle": style, "linewidth": 1.3}
            workers.step(
                hours, [sample.count for sample in trial.samples], where="post", label=trial.scaling.name, **look
            )
            work.plot(hours, [sample.work / HOUR for sample in trial.samples], **look)
        workers.set_title(title, fontsize=10, loc="left")
        work.set_xlabel("hours")
        for axis in (workers, work):
            axis.set_ylim(bottom=0)
            axis.margins(x=0.01)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("workers")
    axes[1][0].set_ylabel("work left, hours of one device")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=8.5, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
