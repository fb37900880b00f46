"""B6, jobs of different LoRA, steps, guidance and seed at once: against one at a time, and against diffusers.

    python -m tests.benchmarks.mixed_batch [--jobs 1 2 4 8 16] [--size small] [--repeat 3] [--out FILE.json]

`together` hands all jobs to the engine at once; `one at a time` waits for each; diffusers has a thread a job and a lock
around its pipeline, since a call of it cannot share a step with another, nor hold two LoRAs apart. A second table is of
jobs that differ in text, picture and seed only, which diffusers can make in one batched call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import WAIT, Ours
from tests.benchmarks.peers import Hotswap, Plain, better_layout
from tests.benchmarks.report import Claim, Gate, Report, Table, worst
from tests.benchmarks.statistic import Interval, interleaved, interval, ratio
from tests.benchmarks.topologies import Topology, attention_layers
from tests.benchmarks.work import Job, Lora, make_lora
from worker.engine.lora import LoraWeights

DEFAULTS = Options(size="small", steps=(12,), ranks=(16,), jobs=(1, 2, 4, 8, 16), repeat=3)
GUIDANCE = (7.5, 1.0, 5.0, 9.0)
WANTED = 2.0  # at eight jobs on a GPU: a CPU is full with one


def run(options: Options) -> Report:
    report = Report("B6", "jobs that share their steps", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    layout, note = better_layout(topology, options)
    with Ours(topology, options) as ours:
        ours.warm_up()
        most = max(options.jobs)
        shapes = attention_layers(ours.engine.pipe.unet, options.lora_targets)
        rank = options.ranks[-1]
        loras = [make_lora(shapes, rank, options.seed + i, options.torch_dtype) for i in range(most)]
        report.notes += [note, f"the warm-up chose up to {ours.engine.max_rows} rows a forward"]
        _different(report, options, ours, Hotswap(topology, layout, loras[0]), Plain(topology, layout), loras)
        _alike(report, options, ours, Plain(topology, layout))
    return report


def _jobs(options: Options, count: int) -> list[Job]:
    steps = options.steps[-1]
    return [
        Job(options.seed + 10 * i, max(1, steps + (i % 3 - 1) * steps // 4), options.side, GUIDANCE[i % len(GUIDANCE)])
        for i in range(count)
    ]


def _together(ours: Ours, jobs: Sequence[Job], loras: Sequence[Sequence[LoraWeights]]) -> float:
    begin = time.perf_counter()
    for future in [ours.submit(job, some) for job, some in zip(jobs, loras, strict=True)]:
        future.result(WAIT)
    return time.perf_counter() - begin


def _one_at_a_time(ours: Ours, jobs: Sequence[Job], read: Sequence[LoraWeights]) -> float:
    return sum(ours.seconds(job, lora) for job, lora in zip(jobs, read, strict=True))


def _behind_a_lock(peer: Hotswap, jobs: Sequence[Job], loras: Sequence[Lora]) -> float:
    lock = threading.Lock()

    def one(job: Job, lora: Lora) -> None:
        with lock:
            peer.paint(job, lora)

    begin = time.perf_counter()
    with ThreadPoolExecutor(len(jobs)) as threads:
        list(threads.map(one, jobs, loras))
    peer._wait()
    return time.perf_counter() - begin


def _different(report: Report, options: Options, ours: Ours, peer: Hotswap, plain: Plain, loras: list[Lora]) -> None:
    columns = ("jobs", "together, jobs/s", "one at a time", "diffusers + lock", "quicker than one at a time")
    table = Table(
        (*columns, "than diffusers", "mode", "latents differ by"), [], "Each with its own LoRA, steps, guidance"
    )
    report.tables.append(table)
    for count in options.jobs:
        jobs, some = _jobs(options, count), loras[:count]
        read = [ours.read(lora) for lora in some]
        painted = [future.result(WAIT) for future in [ours.submit(j, [r]) for j, r in zip(jobs, read, strict=True)]]
        gate = report.gated(f"{count} jobs", worst([
            Gate.of(one.request.latents, peer.latents(job, lora), options.torch_dtype, plain.latents(job))
            for one, job, lora in zip(painted, jobs, some, strict=True)
        ]))  # fmt: skip
        found = interleaved(
            {
                "together": lambda _, jobs=jobs, read=read: _together(ours, jobs, [[one] for one in read]),
                "alone": lambda _, jobs=jobs, read=read: _one_at_a_time(ours, jobs, read),
                "lock": lambda _, jobs=jobs, some=some: _behind_a_lock(peer, jobs, some),
            },
            options.repeat,
            what=f"B6, {count} jobs",
        )
        gain = ratio(found["alone"], found["together"], options.seed)
        over = ratio(found["lock"], found["together"], options.seed)
        rates = [interval([count / s for s in found[name]], options.seed) for name in ("together", "alone", "lock")]
        modes = ", ".join(sorted({one.lora_mode for one in painted}))
        table.add(count, *map(_rate, rates), gate.ratio(gain), gate.ratio(over), modes, gate.text)
        report.data[f"{count} jobs"] = found
        if count == 8:
            judged = options.device.startswith("cuda") and options.size != "toy"
            reached = gate.open and gain.median >= WANTED if judged else None
            report.claims.append(Claim(f"≥ {WANTED:.0f}× at 8 jobs on a GPU", gate.ratio(gain), reached))


def _alike(report: Report, options: Options, ours: Ours, plain: Plain) -> None:
    columns = ("jobs", "together, jobs/s", "diffusers, one batched call", "quicker", "latents differ by")
    table = Table(columns, [], "Alike but for text, picture and seed, no LoRA")
    report.tables.append(table)
    for count in options.jobs:
        jobs = [Job(options.seed + 10 * i, options.steps[-1], options.side) for i in range(count)]
        theirs = plain.batch(jobs, "latent")
        painted = [future.result(WAIT).request.latents for future in [ours.submit(job) for job in jobs]]
        gates = [Gate.of(one[0], their, options.torch_dtype) for one, their in zip(painted, theirs, strict=True)]
        gate = report.gated(f"{count} jobs alike", worst(gates))
        found = interleaved(
            {
                "together": lambda _, jobs=jobs: _together(ours, jobs, [()] * len(jobs)),
                "batched": lambda _, jobs=jobs: plain.batch_seconds(jobs),
            },
            options.repeat,
            what=f"B6, {count} jobs alike",
        )
        rates = [interval([count / s for s in found[name]], options.seed) for name in ("together", "batched")]
        cell = gate.ratio(ratio(found["batched"], found["together"], options.seed))
        table.add(count, *map(_rate, rates), cell, gate.text)
        report.data[f"{count} jobs alike"] = found


def _rate(one: Interval) -> str:
    return one.text(lambda rate: f"{rate:.2f}")


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
