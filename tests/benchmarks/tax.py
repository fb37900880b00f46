"""B3, the tax: what one LoRA adds to a step, merged and mixed; and what it adds to diffusers' step, unfused (PEFT).

    python -m tests.benchmarks.tax [--size full] [--repeat 16] [--out FILE.json]

The seconds are those of the engine's own forwards, as a worker's metrics count them, in jobs that take turns: none,
merged, mixed, then diffusers without and with an adapter. The first forward of a job is left out (it is where factors
and packed convolutions are made, which B1 counts); each of the others is one of a pair. diffusers' seconds are those
inside its UNet.
"""

from __future__ import annotations

import time
from typing import Any

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import ALWAYS_MERGED, ALWAYS_MIXED, Ours
from tests.benchmarks.peers import Plain, Resident, better_layout
from tests.benchmarks.report import Claim, Gate, Report, Table
from tests.benchmarks.statistic import Progress, interval, milliseconds, percent, ratio
from tests.benchmarks.topologies import Topology, attention_layers
from tests.benchmarks.work import Job, make_lora
from worker.engine.lora import LoraWeights

DEFAULTS = Options(size="full", steps=(3,), ranks=(16,), repeat=16)
NONE, MERGED, MIXED = "none", "merged", "mixed"


class _Watched:
    """Seconds inside diffusers' UNet, forward by forward."""

    def __init__(self, peer: Plain):
        self.peer, self._began = peer, 0.0
        self.seconds: list[float] = []
        peer.pipe.unet.register_forward_pre_hook(self._begin)
        peer.pipe.unet.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.peer._wait()
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.peer._wait()
        self.seconds.append(time.perf_counter() - self._began)

    def forwards(self, job: Job, lora: Any = None) -> list[float]:
        """Of one job, without its first."""
        self.seconds = []
        self.peer.paint(job, lora, "latent")
        return self.seconds[1:]


def run(options: Options) -> Report:
    report = Report("B3", "tax of one LoRA on a step", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    layout, note = better_layout(topology, options)
    report.notes.append(note)
    with Ours(topology, options) as ours:
        ours.warm_up()
        for rank in options.ranks:
            _one_rank(report, options, topology, layout, ours, rank)
    return report


def _one_rank(report: Report, options: Options, topology: Topology, layout, ours: Ours, rank: int) -> None:
    shapes = attention_layers(ours.engine.pipe.unet, options.lora_targets)
    lora = make_lora(shapes, rank, options.seed, options.torch_dtype)
    mine, job = ours.read(lora), Job(options.seed, max(2, *options.steps, 2), options.side)
    plain, peft = _Watched(Plain(topology, layout)), _Watched(Resident(topology, layout, lora))
    without = plain.peer.latents(job)
    expected = peft.peer.latents(job, lora)
    gates = {}
    for mode in (MERGED, MIXED):
        found, made = _latents(ours, mode, job, mine)
        assert made == mode, f"the engine made its steps {made} and not {mode}"
        gates[mode] = report.gated(f"rank {rank}, {mode}", Gate.of(found, expected, options.torch_dtype, without))
    seconds: dict[str, list[float]] = {name: [] for name in (NONE, MERGED, MIXED, "plain", "peft")}
    progress = Progress(f"B3, rank {rank}", 5 * (options.repeat + 1), "jobs")
    for number in range(-1, options.repeat):
        turn = {
            NONE: lambda: _forwards(ours, MERGED, job),
            MERGED: lambda: _forwards(ours, MERGED, job, mine),
            MIXED: lambda: _forwards(ours, MIXED, job, mine),
            "plain": lambda: plain.forwards(job),
            "peft": lambda: peft.forwards(job, lora),
        }
        names = list(turn)
        for name in names[number % 5 :] + names[: number % 5]:
            found_now = turn[name]()
            seconds[name] += found_now if number >= 0 else []
            progress.step()
    report.data[f"rank {rank}"] = seconds
    _table(report, options, rank, seconds, gates)


def _believing(ours: Ours, mode: str) -> None:
    ours.believe(ALWAYS_MIXED if mode == MIXED else ALWAYS_MERGED)


def _latents(ours: Ours, mode: str, job: Job, lora: LoraWeights):
    _believing(ours, MERGED)
    ours.paint(Job(job.seed, 1, job.side))  # takes the one before out: what is in the weights already stays merged
    _believing(ours, mode)
    painted = ours.paint(job, lora)
    return painted.request.latents, painted.lora_mode


def _forwards(ours: Ours, mode: str, job: Job, *loras: LoraWeights) -> list[float]:
    if mode == MIXED:
        _believing(ours, MERGED)
        ours.paint(Job(job.seed, 1, job.side))
    _believing(ours, mode)
    ours.forget()
    ours.paint(job, *loras)
    return [seconds for _, seconds in ours.steps[1:]]


def _table(
    report: Report, options: Options, rank: int, seconds: dict[str, list[float]], gates: dict[str, Gate]
) -> None:
    table = Table(("step", "ms", "tax", "pairs", "latents differ by"), [], f"Rank {rank}")
    taxes = {}
    for name, base, label in (
        (NONE, "", "this engine, none"), (MERGED, NONE, "this engine, merged"), (MIXED, NONE, "this engine, mixed"),
        ("plain", "", "diffusers, none"), ("peft", "plain", "diffusers, PEFT unfused"),
    ):  # fmt: skip
        values = seconds[name]
        cells = [interval(values, options.seed).text(milliseconds), "", "", ""]
        if base:
            taxes[name] = tax = ratio(values, seconds[base], options.seed)
            gate = gates.get(name, gates[MERGED])
            cells[1:] = [gate.ratio(tax, lambda r: percent(r - 1)), str(tax.count), gate.text if name in gates else ""]
        table.add(label, *cells)
    report.tables.append(table)
    judged = options.size != "toy" and taxes[MERGED].count >= 30
    merged, mixed, peft = (taxes[name].median - 1 for name in (MERGED, MIXED, "peft"))
    claims = (
        ("merged ≤ 1 %", percent(merged), gates[MERGED].open and merged <= 0.01),
        ("mixed ≤ half of PEFT's", f"{percent(mixed)} of {percent(peft)}", gates[MIXED].open and mixed <= peft / 2),
    )
    report.claims += [Claim(f"rank {rank}: {w}", found, reached if judged else None) for w, found, reached in claims]


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
