"""B2, jobs an hour where every job brings a new LoRA.

    python -m tests.benchmarks.new_lora_jobs [--size small|full] [--steps 20] [--repeat 10] [--out FILE.json]

One job after the other, each with a LoRA not used before, in RAM. Beside it this engine's jobs without LoRAs, and
diffusers in each of its ways. `--size small --side 64`, the default, is where swap ÷ step is an H200's (`topologies.py`
has the sum); what it is here is printed, with what of the gain comes from the swap and what from the step.
"""

from __future__ import annotations

import statistics

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import Ours
from tests.benchmarks.peers import Fused, Hotswap, Loaded, Plain, Resident, better_layout
from tests.benchmarks.report import Claim, Gate, Report, Table
from tests.benchmarks.statistic import interleaved, interval, milliseconds, percent, ratio, times
from tests.benchmarks.topologies import H200_STEP_SECONDS, H200_SWAP_SECONDS, Topology, attention_layers
from tests.benchmarks.work import Job, NewLoras

DEFAULTS = Options(size="small", side=64, steps=(20,), ranks=(16,), repeat=10)
PEERS = (Hotswap, Resident, Loaded, Fused)
WANTED = {"cpu": 2.0, "cuda": 3.0}
NONE, NEW = "this engine, no LoRA", "this engine"


def run(options: Options) -> Report:
    report = Report("B2", "jobs, each with a new LoRA", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    layout, note = better_layout(topology, options)
    report.notes += [note, f"jobs of {options.steps[-1]} steps with a LoRA of rank {options.ranks[-1]}"]
    with Ours(topology, options) as ours:
        ours.warm_up()
        _compare(report, options, topology, layout, ours)
    return report


def _compare(report: Report, options: Options, topology: Topology, layout, ours: Ours) -> None:
    shapes = attention_layers(ours.engine.pipe.unet, options.lora_targets)
    steps, new = options.steps[-1], NewLoras(shapes, options.ranks[-1], options.seed, options.torch_dtype)

    def job(number: int) -> Job:
        return Job(options.seed + 100 + number, steps, options.side)

    plain = Plain(topology, layout)
    peers = {peer.name: peer for peer in [kind(topology, layout, new()) for kind in PEERS]}
    lora, first = new(), Job(options.seed, min(3, steps), options.side)
    without, mine = plain.latents(first), ours.latents(first, ours.read(lora))
    gates = {
        name: report.gated(name, Gate.of(mine, peer.latents(first, lora), options.torch_dtype, without))
        for name, peer in peers.items()
    }

    def none(number: int) -> float:
        ours.paint(Job(options.seed, 1, options.side))  # takes the LoRA before out: not a part of these jobs
        return ours.seconds(job(number))

    def with_new(number: int) -> float:
        before, now = ours.read(new()), ours.read(new())
        ours.paint(Job(options.seed, 1, options.side), before)
        return ours.seconds(job(number), now)

    def theirs(peer: Plain):
        def timed(number: int) -> float:
            lora = new()
            peer.ready(lora)
            return peer.seconds(job(number), lora)

        return timed

    contenders = {NONE: none, NEW: with_new, plain.name: lambda number: plain.seconds(job(number))}
    contenders |= {name: theirs(peer) for name, peer in peers.items()}
    ours.forget()
    found = interleaved(contenders, options.repeat, what="B2")
    step = statistics.median(seconds for _, seconds in ours.steps)
    hotswaps = [peers[Hotswap.name].swap_seconds(new()) for _ in range(min(5, options.repeat))]
    report.data |= {"seconds": found, "hotswap seconds": hotswaps, "step seconds": step}
    _table(report, options, found, gates)
    _regime(report, found, step, statistics.median(hotswaps), gates[Hotswap.name])
    _judge(report, options, found, gates)


def _table(report: Report, options: Options, found: dict[str, list[float]], gates: dict[str, Gate]) -> None:
    table = Table(("way", "s a job", "jobs an hour", "this engine is quicker by", "latents differ by"))
    for name, values in found.items():
        middle = interval(values, options.seed)
        against = ratio(values, found[NEW], options.seed)
        gate = gates.get(name)
        cell = gate.ratio(against) if gate else ""
        table.add(
            name, middle.text(lambda s: f"{s:.3f}"), f"{3600 / middle.median:,.0f}", cell, gate.text if gate else ""
        )
    report.tables.append(table)


def _regime(report: Report, found: dict[str, list[float]], step: float, hotswap: float, gate: Gate) -> None:
    """Where this machine stands between a swap and a step, and what of the gain comes from which."""
    ours = statistics.median(a - b for a, b in zip(found[NEW], found[NONE], strict=True))
    table = Table(("", "a swap, ms", "a step, ms", "swap ÷ step"), [], "Swaps and steps")
    table.add("this engine, here", milliseconds(ours), milliseconds(step), f"{ours / step:.2f}")
    table.add("hotswap, here", milliseconds(hotswap), "", f"{hotswap / step:.2f}")
    for name, seconds in (("this engine, an H200 (at most)", H200_SWAP_SECONDS), ("hotswap, an H200", 0.06)):
        table.add(name, milliseconds(seconds), milliseconds(H200_STEP_SECONDS), f"{seconds / H200_STEP_SECONDS:.2f}")
    report.tables.append(table)
    gain = statistics.median(found[Hotswap.name]) - statistics.median(found[NEW])
    if gain > 0 and gate.open:
        of_swap = (hotswap - ours) / gain
        report.notes.append(
            f"of the {milliseconds(gain)} ms a job gained over hotswap, {percent(of_swap)} are the swap's and "
            f"{percent(1 - of_swap)} the steps'"
        )
        report.data["share of the swap in the gain"] = of_swap


def _judge(report: Report, options: Options, found: dict[str, list[float]], gates: dict[str, Gate]) -> None:
    judged = options.size != "toy"
    kept = ratio(found[NONE], found[NEW], options.seed)
    verdict = kept.median >= 0.98 if judged else None
    report.claims.append(Claim("≥ 98 % of this engine's jobs an hour without LoRA", kept.text(percent), verdict))
    best = min(gates, key=lambda name: statistics.median(found[name]))
    wanted, gain = WANTED[options.device.partition(":")[0]], ratio(found[best], found[NEW], options.seed)
    verdict = gates[best].open and gain.median >= wanted if judged else None
    report.claims.append(Claim(f"≥ {wanted:.0f}× the best peer ({best})", gates[best].ratio(gain, times), verdict))


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
