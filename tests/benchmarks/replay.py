"""B7, production's mix of jobs through the real engine, its inputs behind a slow store.

    python -m tests.benchmarks.replay [--trace FILE.csv] [--jobs 32] [--load 0.8] [--store-delays 0.05 0.3]

The trace's jobs of its most used checkpoint (a worker serves one) run as inpaint jobs with the trace's LoRAs, scales,
steps and pictures a prompt; without `--trace` a generated one with the statistics of GenTD26. Every object a job reads
or writes takes a request of `--store-delays` seconds in a thread of its own, as in a worker; a LoRA that was read stays
in RAM.

backlog     all jobs are there: the share of the wall inside model forwards, and steps a second beside the bare loop
arrivals    they come at random (Poisson) at `--load` of the bare loop's rate: how long each takes, store and all

The peers serve the same arrivals, from the same threads and with this engine's steps, so that what differs is the order
only: `FIFO` makes one job after the other; `static batch` takes those waiting that one batched call could make (of one
LoRA set, steps and guidance) as far as a forward holds, and takes the next when all of them are done.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import Ours
from tests.benchmarks.report import Claim, Gate, Report, Table, worst
from tests.benchmarks.serving import Arrival, AsTheyCome, Fifo, Served, StaticBatch, serve
from tests.benchmarks.statistic import percent
from tests.benchmarks.topologies import Topology
from tests.benchmarks.trace import TraceJob, read
from tests.benchmarks.trace_model import synthetic
from tests.benchmarks.work import Job

DEFAULTS = Options(size="small", jobs=(32,), ranks=(16,), repeat=5)
POLICIES = (AsTheyCome, StaticBatch, Fifo)
USUAL_STEPS = 30  # where a trace does not say


def run(options: Options) -> Report:
    report = Report("B7", "a trace of production", facts(options))
    jobs = _of_one_checkpoint(read(options.trace) if options.trace else _generated(options), max(options.jobs))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    with Ours(topology, options) as ours:
        ours.warm_up()
        bare = ours.bare_row_steps(what="B7, bare loop")
        work = [_job(one, number, options) for number, one in enumerate(jobs)]
        _backlog(report, options, ours, _arrivals(jobs, work, 0.0, options), bare)
        rate = options.load * bare / statistics.mean(job.row_steps for job in work)
        _random(report, options, ours, _arrivals(jobs, work, rate, options), rate)
    source = options.trace.name if options.trace else "generated"
    low, high = (1000 * delay for delay in options.store_delays)
    report.notes.append(
        f"{len(jobs)} jobs ({source}), {len({one.lora_set for one in jobs})} LoRA sets, at most {options.concurrency} "
        f"in hand, {ours.engine.max_rows} rows a forward; the store takes {low:.0f}-{high:.0f} ms a request"
    )
    return report


def _generated(options: Options) -> list[TraceJob]:
    return synthetic(20 * max(options.jobs) + 100, options.seed)


def _of_one_checkpoint(trace: Sequence[TraceJob], count: int) -> list[TraceJob]:
    """The first `count` jobs of the checkpoint that most jobs with LoRAs ask for."""
    most = Counter(one.checkpoint for one in trace if one.loras).most_common(1)[0][0]
    chosen = [one for one in trace if one.checkpoint == most][:count]
    if len(chosen) < count:
        raise ValueError(f"the trace has only {len(chosen)} jobs of its most used checkpoint: ask for fewer")
    return chosen


def _job(one: TraceJob, number: int, options: Options) -> Job:
    steps, images = one.steps or USUAL_STEPS, one.images or 1
    if options.size == "toy":
        steps, images = min(steps, 1 + number % 3), min(images, 2)
    return Job(1000 * options.seed + 20 * number, steps, options.side, images=images)


def _arrivals(jobs: Sequence[TraceJob], work: Sequence[Job], rate: float, options: Options) -> list[Arrival]:
    """With a Poisson process's times at `rate` jobs a second; at 0, all at once."""
    draw, now, made = random.Random(options.seed), 0.0, []
    for number, (one, job) in enumerate(zip(jobs, work, strict=True)):
        now += draw.expovariate(rate) if rate else 0.0
        made.append(Arrival(number, now, job, one.loras))
    return made


def _backlog(report: Report, options: Options, ours: Ours, arrivals: list[Arrival], bare: float) -> None:
    table = Table(
        ("policy", "wall, s", "inside forwards", "row-steps/s", "of the bare loop", "rows a forward"), [], "Backlog"
    )
    done = serve(ours, arrivals, AsTheyCome, options, what="B7, backlog")
    made = sum(arrival.job.row_steps for arrival in arrivals) / done.wall
    busy = done.computed / done.wall
    table.add(
        AsTheyCome.name,
        f"{done.wall:.1f}",
        percent(busy),
        f"{made:,.1f}",
        percent(made / bare),
        f"{done.mean_rows:.1f}",
    )
    table.add("the bare loop", "", "", f"{bare:,.1f}", "100 %", "")
    report.tables.append(table)
    report.data["backlog"] = {"bare": bare, "made": made, "busy": busy, "worked": done.worked, "wall": done.wall}
    for wanted, found, reached in (
        ("≥ 98 % of the wall inside model forwards", busy, 0.98),
        ("steps/s ≥ 90 % of the bare loop", made / bare, 0.9),
    ):
        report.claims.append(Claim(wanted, percent(found), found >= reached if options.size != "toy" else None))


def _random(report: Report, options: Options, ours: Ours, arrivals: list[Arrival], rate: float) -> None:
    columns = ("policy", "p50, s", "p95, s", "wall, s", "inside forwards", "rows a forward", "latents differ by")
    table = Table(columns, [], f"Arrivals, {rate:.2f} jobs/s")
    served = {kind.name: serve(ours, arrivals, kind, options, what=f"B7, {kind.name}") for kind in POLICIES}
    mine = served[AsTheyCome.name]
    gates = {name: report.gated(name, _gate(mine, done, options)) for name, done in served.items()}
    p95 = {}
    for name, done in served.items():
        waits = sorted(done.waits.values())
        p50, p95[name] = statistics.median(waits), waits[min(len(waits) - 1, int(0.95 * len(waits)))]
        busy = percent(done.computed / done.wall)
        table.add(
            name, f"{p50:.2f}", f"{p95[name]:.2f}", f"{done.wall:.1f}", busy, f"{done.mean_rows:.1f}", gates[name].text
        )
        report.data[name] = {"waits": done.waits, "wall": done.wall, "worked": done.worked}
    report.tables.append(table)
    for peer in (StaticBatch.name, Fifo.name):
        less = p95[AsTheyCome.name] / p95[peer] - 1
        enough = options.size != "toy" and len(arrivals) >= 40
        reached = gates[peer].open and less <= -0.3 if enough else None
        report.claims.append(Claim(f"p95 −30 % beside {peer}", gates[peer].ratio(less, percent), reached))


def _gate(mine: Served, theirs: Served, options: Options) -> Gate:
    return worst([Gate.of(mine.latents[n], theirs.latents[n], options.torch_dtype) for n in mine.latents])


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
