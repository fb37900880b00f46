"""B8, how near to the machine's limit: FLOP/s of a UNet forward ÷ FLOP/s of the best matrix product of the same run.

    python -m tests.benchmarks.limit [--size full] [--side 128] [--repeat 7] [--device cuda --dtype float16 --side 512]

Operations are counted once for each way by `torch.utils.flop_counter` (a multiplication and an addition are two), so a
way that spares some (texts and times made once a job) is credited for those it makes only. The ceiling is the quickest
of several square products. All ways and the ceiling take turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.peers import better_layout
from tests.benchmarks.report import Claim, Gate, Report, Table
from tests.benchmarks.statistic import interleaved, interval, milliseconds, on_device, percent, ratio
from tests.benchmarks.topologies import SIZES, Topology
from worker.engine.packing import PackedConvolutions
from worker.engine.unet import UNet2DConditionModel

DEFAULTS = Options(size="full", side=128, repeat=7)
ROWS = 2  # one picture under guidance
WANTED = {"cpu": 0.75, "cuda": 0.60}
GEMMS = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts the attention of its GPU kernels only.
_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


@torch.no_grad()
def run(options: Options) -> Report:
    report = Report("B8", "share of the machine's limit", facts(options))
    kind = torch.device(options.device).type
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    sample, time, text = inputs(options)
    layout, note = better_layout(topology, options)
    with ExitStack() as stack:
        forwards = _ways(topology, stack, sample, time, text, kind, layout)
        flops = {name: count_flops(do) for name, do in forwards.items() if "packed" not in name}
        flops |= {name: flops[name.replace(", packed", "")] for name in forwards if name not in flops}
        theirs = next(name for name in forwards if name.startswith("diffusers"))
        expected = forwards[theirs]()
        gates = {
            name: report.gated(name, Gate.of(do(), expected, options.torch_dtype)) for name, do in forwards.items()
        }
        contenders = {name: on_device(do, options.device) for name, do in forwards.items()}
        contenders |= {f"GEMM {n}": on_device(_gemm(n, options), options.device) for n in GEMMS[kind]}
        found = interleaved(contenders, options.repeat, what="B8")
    speeds = {name: [flops[name] / s for s in found[name]] for name in forwards}
    products = {name: [2 * int(name.split()[1]) ** 3 / s for s in found[name]] for name in found if "GEMM" in name}
    square = max(products, key=lambda name: statistics.median(products[name])).split()[1]
    ceiling = products[f"GEMM {square}"]
    report.data = {"seconds": found, "flops": flops, "ceiling": ceiling}
    _tables(report, options, found, flops, speeds, ceiling, gates, theirs)
    report.notes += [
        note,
        f"a forward of {ROWS} rows at {options.side} px; the ceiling is the product of {square} × {square}",
    ]
    best = max((n for n in forwards if not n.startswith("diffusers")), key=lambda n: statistics.median(speeds[n]))
    share = ratio(speeds[best], ceiling, options.seed)
    judged = gates[best].open and share.median >= WANTED[kind] if options.size == "full" else None
    report.claims.append(
        Claim(f"≥ {percent(WANTED[kind])} of the GEMM's FLOP/s", f"{share.text(percent)} ({best})", judged)
    )
    return report


def inputs(options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and texts of one picture under guidance."""
    draw, config, side = torch.Generator().manual_seed(options.seed), SIZES[options.size], options.side // 8
    sample = torch.randn(ROWS, config["in_channels"], side, side, generator=draw)
    text = torch.randn(ROWS, 77, config["cross_attention_dim"], generator=draw)
    where = {"device": options.device, "dtype": options.torch_dtype}
    return sample.to(**where), torch.full((ROWS,), 500.0, device=options.device), text.to(**where)


def _ways(
    topology: Topology, stack: ExitStack, sample: Tensor, time: Tensor, text: Tensor, kind: str, layout
) -> dict[str, Callable[[], Tensor]]:
    """Each way's forward; ours with texts and times made once is how the engine makes a step."""
    ways: dict[str, Callable[[], Tensor]] = {}

    def ours(name: str, unet: UNet2DConditionModel, laid: Tensor) -> None:
        made = unet.time_states(time), unet.text_keys_values(text)
        if "packed" not in name:
            ways[f"this engine{name}"] = lambda: unet(laid, time, text)
        ways[f"this engine, conditions once{name}"] = lambda: unet(laid, *made)

    last = torch.channels_last
    ours("", topology.our_unet(own_memory=False), sample)
    if kind == "cpu" and topology.dtype == torch.float32:
        packed = topology.our_unet(own_memory=False)
        stack.callback(PackedConvolutions(packed).remove)
        ours(", packed", packed, sample)
    ours(", channels last", topology.our_unet(own_memory=False, layout=last), sample.contiguous(memory_format=last))
    peer, theirs = topology.their_unet(own_memory=False, layout=layout), sample.contiguous(memory_format=layout)
    ways["diffusers"] = lambda: peer(theirs, time, text).sample
    return ways


def count_flops(do: Callable[[], object]) -> int:
    """Floating point operations of `do`: a multiplication and an addition are two."""
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
        do()
    return counter.get_total_flops()


def _gemm(n: int, options: Options) -> Callable[[], Tensor]:
    a, b = (torch.randn(n, n, device=options.device, dtype=options.torch_dtype) for _ in range(2))
    return lambda: a @ b


def _tables(
    report: Report, options: Options, found, flops, speeds, ceiling, gates: dict[str, Gate], theirs: str
) -> None:
    table = Table(
        ("way", "a forward, ms", "GFLOP", "GFLOP/s", "of the ceiling", "quicker than diffusers", "outputs differ by")
    )
    for name, speed in speeds.items():
        gate = gates[name]
        table.add(
            name,
            interval(found[name], options.seed).text(milliseconds),
            f"{flops[name] / 1e9:,.2f}",
            f"{statistics.median(speed) / 1e9:,.1f}",
            gate.ratio(ratio(speed, ceiling, options.seed), percent),
            "" if name == theirs else gate.ratio(ratio(found[theirs], found[name], options.seed)),
            gate.text,
        )
    table.add("the best matrix product", "", "", f"{statistics.median(ceiling) / 1e9:,.1f}", "100 %", "", "")
    report.tables.append(table)


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
