"""B1, what a new LoRA costs: T(job with a LoRA not used before, in RAM) − T(the same job without).

    python -m tests.benchmarks.new_lora [--size full] [--steps 1 4 20] [--ranks 16 128] [--repeat 6] [--out FILE.json]

Both are timed in turns, from the call to the picture. A job without is timed where no LoRA was in the weights, a job
with where the one before it had another: as it is where every job brings its own. Whatever the engine does for it
counts: checking, merging (or the factors of a mixed step), taking the old one out, laying packed convolutions out anew.
The mode is what the engine's cost model picks. A peer's difference is to its own job without LoRA, so what its way adds
to each step counts, too.
"""

from __future__ import annotations

import statistics

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import Ours
from tests.benchmarks.peers import Fused, Hotswap, Plain, Resident, better_layout
from tests.benchmarks.report import Claim, Gate, Report, Table, worst
from tests.benchmarks.statistic import difference, interleaved, milliseconds
from tests.benchmarks.topologies import Topology, attention_layers
from tests.benchmarks.work import Job, Lora, NewLoras

DEFAULTS = Options(size="full", steps=(1, 4, 20), ranks=(16, 128), repeat=6)
PEERS = (Hotswap, Resident, Fused)
WANTED = {"cpu": 3.0, "cuda": 10.0}


def run(options: Options) -> Report:
    report = Report("B1", "cost of a new LoRA", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    layout, note = better_layout(topology, options)
    report.notes += [note, "a LoRA is on the UNet's attention layers; VAE and text encoder are tiny"]
    plain = Plain(topology, layout)
    with Ours(topology, options) as ours:
        costs = ours.warm_up()
        report.data["costs"] = costs.to_json()
        shapes = attention_layers(ours.engine.pipe.unet, options.lora_targets)
        for rank in options.ranks:
            _one_rank(
                report,
                options,
                topology,
                ours,
                plain,
                layout,
                NewLoras(shapes, rank, options.seed, options.torch_dtype),
                rank,
            )
    _judge(report, options)
    return report


def _one_rank(
    report: Report, options: Options, topology, ours: Ours, plain: Plain, layout, new_lora: NewLoras, rank: int
):
    peers = [kind(topology, layout, new_lora()) for kind in PEERS]
    gates = {
        peer.name: report.gated(f"rank {rank}, {peer.name}", _gate(options, ours, plain, peer, new_lora))
        for peer in peers
    }
    table = Table(
        ("steps", "way", "none, ms", "with a new LoRA, ms", "cost, ms", "ours is smaller by"), [], f"Rank {rank}"
    )
    report.tables.append(table)
    modes: set[str] = set()
    for steps in options.steps:
        job, short = (Job(options.seed, count, options.side) for count in (steps, 1))

        def none(_: int, job=job, short=short) -> float:
            ours.paint(short)  # takes out what the job before had
            return ours.seconds(job)

        def new(_: int, job=job, short=short) -> float:
            before, now = ours.read(new_lora()), ours.read(new_lora())
            ours.paint(short, before)
            return ours.seconds(job, now)

        contenders = {"none": none, "new": new, "none of diffusers": lambda _, job=job: plain.seconds(job)}
        contenders |= {peer.name: lambda _, peer=peer, job=job: _peer(peer, job, new_lora()) for peer in peers}
        rounds, cold = _rounds(options, steps), int(steps == min(options.steps))
        found = interleaved(contenders, rounds, what=f"B1, rank {rank}, {steps} steps", warm_up=cold)
        modes.add(ours.paint(job, ours.read(new_lora())).lora_mode)
        cost = difference(found["new"], found["none"], options.seed)
        report.data[f"rank {rank}, {steps} steps"] = found
        table.add(steps, ours.name, _ms(found["none"]), _ms(found["new"]), cost.text(milliseconds), "")
        for peer in peers:
            theirs = difference(found[peer.name], found["none of diffusers"], options.seed)
            by = theirs.median / max(cost.median, 1e-6)
            cell = gates[peer.name].ratio(by) if cost.low > 0 else "ours is lost in the noise"
            table.add(
                steps,
                peer.name,
                _ms(found["none of diffusers"]),
                _ms(found[peer.name]),
                theirs.text(milliseconds),
                cell,
            )
            report.data.setdefault("smaller by", []).append((rank, steps, peer.name, by, gates[peer.name].open))
    report.notes.append(
        f"rank {rank}: the cost model picked {', '.join(sorted(modes))}; latents equal to the peers' within "
        f"{worst(list(gates.values())).text}"
    )


def _rounds(options: Options, steps: int) -> int:
    """More where a job is short: there the difference is the larger part, and a round costs little."""
    return max(min(2, options.repeat), round(options.repeat / steps**0.5))


def _peer(peer: Plain, job: Job, lora: Lora) -> float:
    peer.ready(lora)
    return peer.seconds(job, lora)


def _gate(options: Options, ours: Ours, plain: Plain, peer: Plain, new_lora: NewLoras) -> Gate:
    job, lora = Job(options.seed + 1, min(2, max(options.steps)), options.side), new_lora()
    without = plain.latents(job)
    return Gate.of(ours.latents(job, ours.read(lora)), peer.latents(job, lora), options.torch_dtype, without)


def _ms(values: list[float]) -> str:
    return milliseconds(statistics.median(values))


def _judge(report: Report, options: Options) -> None:
    wanted = WANTED[options.device.partition(":")[0]]
    against = [one for one in report.data["smaller by"] if one[2] == Hotswap.name]
    least = min(against, key=lambda one: one[3])
    found = (
        f"{least[3]:.1f}× at rank {least[0]}, {least[1]} steps, where it is least" if least[4] else "outputs not equal"
    )
    judged = None if options.size == "toy" else least[4] and least[3] >= wanted
    report.claims.append(Claim(f"the cost of a new LoRA ≥ {wanted:.0f}× smaller than hotswap's", found, judged))


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
