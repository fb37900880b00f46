"""Print what each policy costs, and how long it takes, on a day of GenTD26's mix and on a million images; draw both.

    python -m tests.simulation                                         about three minutes
    python -m tests.simulation --trace FILE.csv --seed 2 --out plot.png

The same seed gives the same table: arrivals, nodes' starting times and spot preemptions are drawn from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.trace import read
from tests.benchmarks.trace_model import GENTD26_JOBS, synthetic
from tests.helm.chart import CHART
from tests.simulation.arrivals import USUAL_STEPS, Device, day, run
from tests.simulation.cluster import Nodes
from tests.simulation.policy import policies
from tests.simulation.report import Outcome, draw, table
from tests.simulation.trial import Trial


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="The autoscaling, simulated.")
    parser.add_argument("--trace", type=Path, metavar="FILE.csv", help="the mix (default: generated like GenTD26)")
    parser.add_argument("--images", type=int, default=1_000_000, help="of the run (default: %(default)s)")
    parser.add_argument("--drain", type=int, default=1800, help="targetDrainSeconds (default: the chart's)")
    parser.add_argument("--most", type=int, default=40, help="maxReplicas (default: values-production's)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CHART.parent / "autoscaling.png", metavar="FILE.png")
    options = parser.parse_args()
    mix = read(options.trace) if options.trace else synthetic(GENTD26_JOBS, options.seed)
    device = Device()
    mean = sum(device.seconds(job.images or 1, job.steps or USUAL_STEPS) for job in mix) / len(mix)
    runs = {}
    for title, arrivals in (
        ("A day of GenTD26's mix", lambda: day(mix, device, options.seed)),
        (f"{options.images:,} images at once", lambda: run(mix, options.images, device, options.seed)),
    ):
        runs[title], outcomes = [], []
        for scaling in policies(mean, drain=options.drain, most=options.most):
            trial = Trial(scaling, Nodes(), options.seed)
            trial.run(arrivals())
            runs[title].append(trial)
            outcomes.append(Outcome.of(trial, options.drain))
        print(f"\n{title}; seed {options.seed}, {options.drain} s to drain, at most {options.most} workers\n")
        print(table(outcomes), flush=True)
    draw(options.out, runs)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
