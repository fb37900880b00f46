"""What each exact saving of a step and of a job gives, beside what was predicted of it before it was measured.

    python -m tests.benchmarks.savings [--size full] [--side 128] [--repeat 7] [--steps 20] [--out FILE.json]

A saving of a step is a forward with it beside one without, in turns; of a job, the seconds that a job of `--steps`
steps does without, ÷ the job's. Predictions come from counts and from facts that are measured by themselves:

- arithmetic that is not done: its share of the FLOPs
- convolutions laid out once: their weights read and written once less, at the speed of a copy in memory
- one product for several: the calls spared, at the seconds of a product of next to nothing
- compiled: half of what a profile finds outside products, convolutions and attention, since what is left between those
  is bound by memory, and fused it reads and writes about half as often
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, CLIPTextModel

from tests.benchmarks.limit import count_flops, inputs
from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.report import Gate, Report, Table
from tests.benchmarks.statistic import Interval, interleaved, milliseconds, on_device, percent, ratio, seconds
from tests.benchmarks.topologies import Topology
from worker.engine.compiled import CompiledUNet
from worker.engine.packing import PackedConvolutions
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL

DEFAULTS = Options(size="full", side=128, repeat=7)
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# What a profile finds in these is arithmetic; all else is moving numbers about.
_ARITHMETIC = ("mm", "convolution", "attention")  # the first is in addmm, bmm and baddbmm, too


@dataclass(frozen=True)
class Saving:
    """`without` and `by`: the forwards that are compared. `predicted`: the part of the seconds of `without`."""

    name: str
    without: str
    by: str
    predicted: float
    equal: bool = True


@torch.no_grad()
def run(options: Options) -> Report:
    report = Report("savings", "what each exact saving gives", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    unet = topology.our_unet(own_memory=False)
    sample, time, text = inputs(options)
    made = unet.time_states(time), unet.text_keys_values(text)
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: unet(sample, time, text),
        "conditions": lambda: unet(sample, *made),
        "one row": lambda: unet(sample[1:], made[0].rows(slice(1, 2)), made[1].rows(slice(1, 2))),
    }
    savings = _of_arithmetic(ways)
    step = statistics.median(on_device(ways["conditions"], options.device)(0) for _ in range(3))
    if unet.device.type == "cpu" and unet.dtype == torch.float32:
        packed = topology.our_unet(own_memory=False)
        PackedConvolutions(packed)
        ways["packed"] = lambda: packed(sample, *made)
        savings.append(Saving("convolutions laid out once", "conditions", "packed", _layout_seconds(unet) / step))
    fused = topology.our_unet()
    fused.fuse_qkv_projections()
    ways["fused"] = lambda: fused(sample, *made)
    savings.append(Saving("query, key and value in one product", "conditions", "fused", _call_seconds(unet) / step))
    compiled = CompiledUNet(unet)
    taken = seconds(lambda: compiled.prepare(tuple(sample.shape[-2:]), 77, len(sample)))
    ways["compiled"] = lambda: compiled(sample, *made)
    savings.append(Saving("compiled", "conditions", "compiled", _moving(ways["conditions"], unet.device.type) / 2))
    gates = {
        s.name: report.gated(s.name, Gate.of(ways[s.by](), ways[s.without](), options.torch_dtype))
        for s in savings
        if s.equal
    }
    found = interleaved({name: on_device(do, options.device) for name, do in ways.items()}, options.repeat, what="step")
    report.data = {"seconds": found, "predicted": {s.name: s.predicted for s in savings}}
    _steps(report, savings, gates, found)
    _jobs(report, options, unet, statistics.median(found["conditions"]), ways)
    report.notes.append(f"compiling one shape took {taken:.0f} s")
    return report


def _of_arithmetic(ways: dict[str, Callable[[], Tensor]]) -> list[Saving]:
    flops = {name: count_flops(do) for name, do in ways.items()}
    return [
        Saving("keys, values and times once a call", "plain", "conditions", 1 - flops["conditions"] / flops["plain"]),
        Saving(
            "no unconditional row", "conditions", "one row", 1 - flops["one row"] / flops["conditions"], equal=False
        ),
    ]


def _layout_seconds(unet: UNet2DConditionModel) -> float:
    """Of writing every convolution's weights once."""
    weights = sum(layer.weight.numel() for layer in unet.modules() if isinstance(layer, nn.Conv2d))
    one, two = torch.empty(weights), torch.empty(weights)
    return statistics.median(seconds(lambda: two.copy_(one)) for _ in range(5))


def _call_seconds(unet: UNet2DConditionModel) -> float:
    """Of the calls that one product for three (of a self-attention) spares; keys and values of texts are made once."""
    width = 8
    x, weight = (torch.zeros(width, width, device=unet.device, dtype=unet.dtype) for _ in range(2))

    def thousand() -> None:
        for _ in range(1000):
            nn.functional.linear(x, weight)

    spared = 2 * sum(not layer.is_cross_attention for layer in unet.attention_layers().values())
    return spared * on_device(thousand, str(unet.device))(0) / 1000


def _moving(forward: Callable[[], object], device: str) -> float:
    """The part of a forward's seconds outside products, convolutions and attention."""
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as watched:
        forward()
    events = {
        e.key: e.self_device_time_total if device == "cuda" else e.self_cpu_time_total for e in watched.key_averages()
    }
    arithmetic = sum(taken for name, taken in events.items() if any(word in name for word in _ARITHMETIC))
    return 1 - arithmetic / sum(events.values())


def _steps(report: Report, savings: list[Saving], gates: dict[str, Gate], found: dict[str, list[float]]) -> None:
    table = Table(("saving of a step", "predicted", "measured", "ms without", "ms with", "outputs differ by"))
    for one in savings:
        spared = ratio(found[one.by], found[one.without])
        measured = Interval(1 - spared.median, 1 - spared.high, 1 - spared.low, spared.count)
        gate = gates.get(one.name)
        table.add(
            one.name,
            percent(one.predicted),
            gate.ratio(measured, percent) if gate else measured.text(percent),
            milliseconds(statistics.median(found[one.without])),
            milliseconds(statistics.median(found[one.by])),
            gate.text if gate else "not comparable",
        )
    report.tables.append(table)


def _jobs(report: Report, options: Options, unet: UNet2DConditionModel, step: float, ways) -> None:
    """Encoders at SD 1.5's size, whatever the UNet's: they are not made again for a text or a picture seen before."""
    torch.manual_seed(options.seed)
    where = {"device": unet.device, "dtype": unet.dtype}
    clip = CLIPTextModel(CLIPTextConfig(**_CLIP)).eval().to(**where)
    theirs = diffusers.AutoencoderKL(**_VAE).eval().to(**where)
    vae = AutoencoderKL.from_weights(theirs.config, theirs.state_dict(), None)
    tokens = torch.zeros(2, 77, dtype=torch.long, device=unet.device)
    pictures = [torch.zeros(1, 3, options.side, options.side, **where) for _ in range(2)]
    steps, one_forward = options.steps[0], count_flops(ways["conditions"])
    once = count_flops(ways["plain"]) - one_forward
    table = Table(("saving of a job", "predicted", "measured", "ms spared"), [], f"Jobs of {steps} steps")

    def predicted(flops: int) -> str:
        return percent(flops / (steps * one_forward + flops))

    for name, do in (
        ("two texts seen before", lambda: clip(tokens)),
        ("a picture seen before, masked and whole", lambda: [vae.encode(one) for one in pictures]),
    ):
        taken = statistics.median(on_device(do, options.device)(0) for _ in range(options.repeat))
        table.add(name, predicted(count_flops(do)), percent(taken / (steps * step + taken)), milliseconds(taken))
    table.add("keys and values of texts kept from job to job", predicted(once), "not built", "")
    report.tables.append(table)


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
