"""Costs of a device, measured with real forwards and real merges: what `choice` decides by."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

from worker.engine.lora.choice import Costs
from worker.engine.lora.deltas import LowRank
from worker.engine.lora.merge import LoraMerger
from worker.engine.lora.mixed import MixedLoras
from worker.engine.lora.sets import Adapter
from worker.engine.lora.targets import Target
from worker.engine.lora.weights import LoraWeights
from worker.engine.unet import UNet2DConditionModel

_Name = TypeVar("_Name", bound=Hashable)

_STRENGTH = 1e-3  # of a trial LoRA's factors: any numbers do, if they stay finite


@torch.no_grad()
def measure(
    unet: UNet2DConditionModel,
    merger: LoraMerger,
    mixed: MixedLoras,
    *,
    latent_size: tuple[int, int],
    rows: Sequence[int] = (1, 2, 4, 8, 16),
    ranks: Sequence[int] = (16, 128),
    sets: Sequence[int] = (1, 2, 4, 8),
    tokens: int = 77,
    repeats: int = 3,
) -> Costs:
    """Medians of `repeats` after one that warms up, at latents of `latent_size` (height, width).

    Made with random LoRAs on all of the UNet's attention layers, what most LoRAs touch; the numbers are scaled to all
    target weights. A mixed step is measured with one row a set, or two (guidance) where `rows` allows as many. The
    weights are, to the bit, what they were, and hold the set they held.
    """
    before = merger.adapters
    seconds = _Clock(unet.device, repeats)
    steps = seconds.in_turns({count: forward_of(unet, latent_size, tokens, count) for count in rows})
    step = {count: statistics.median(taken) for count, taken in steps.items()}
    merge, tax = {}, {}
    largest = max(rows)
    try:
        for rank in ranks:
            trials, share = _trials(merger, rank, unet.device, max(sets))
            merge[rank] = seconds(lambda t=trials: merger.set_adapters(t[:1]), before=merger.restore) / share
            merge[0] = seconds(merger.restore, before=lambda t=trials: merger.set_adapters(t[:1])) / share
            for count in sets:
                each = 2 if 2 * count <= largest else 1
                arrangement = [(trial,) for trial in trials[:count] for _ in range(each)]
                forward = forward_of(unet, latent_size, tokens, len(arrangement))
                both = seconds.in_turns({"plain": forward, "mixed": _within(mixed, arrangement, forward)})
                ratio = statistics.median(a / b for a, b in zip(both["mixed"], both["plain"], strict=True))
                tax[rank, count] = max(0.0, ratio - 1) / share
            mixed.forget()
    finally:
        merger.set_adapters(before)
        mixed.forget()
    return Costs(step, merge, tax)


class _Clock:
    def __init__(self, device: torch.device, repeats: int):
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._repeats = repeats

    def __call__(self, do: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Median seconds of `do`, each time after `before`, which is not counted."""
        taken = [self._once(do, before) for _ in range(self._repeats + 1)]
        return statistics.median(taken[1:])

    def in_turns(self, contenders: Mapping[_Name, Callable[[], object]]) -> dict[_Name, list[float]]:
        """Seconds of all, one after the other in each round, so that a machine that slows down slows all of them."""
        rounds = [{name: self._once(do) for name, do in contenders.items()} for _ in range(self._repeats + 1)][1:]
        return {name: [one[name] for one in rounds] for name in contenders}

    def _once(self, do: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        before()
        self._wait()
        begin = time.perf_counter()
        do()
        self._wait()
        return time.perf_counter() - begin


def forward_of(unet: UNet2DConditionModel, size: tuple[int, int], tokens: int, rows: int) -> Callable[[], object]:
    """A forward of `unet` on noise: latents of `size` (height, width), `rows` of them, a text of `tokens` each."""
    widths = unet.config.cross_attention_dim
    width = widths[0] if isinstance(widths, tuple) else widths
    generator = torch.Generator(unet.device).manual_seed(rows)
    sample, text = (
        torch.randn(rows, *shape, generator=generator, device=unet.device, dtype=unet.dtype)
        for shape in ((unet.config.in_channels, *size), (tokens, width))
    )
    times = torch.full((rows,), 500.0, device=unet.device)
    return lambda: unet(sample, times, text)


def _within(mixed: MixedLoras, sets: Sequence[Sequence[Adapter]], forward: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with mixed.rows(sets):
            forward()

    return run


def _trials(merger: LoraMerger, rank: int, device: torch.device, count: int) -> tuple[list[Adapter], float]:
    """`count` LoRAs that are equal but for their names, and their share of the UNet's target weights."""
    unet = [target for target in merger.table.targets.values() if target.component == "unet"]
    touched = [target for target in unet if ".attentions." in target.name]
    generator = torch.Generator(device).manual_seed(0)
    deltas = {target.name: _random_delta(target, rank, generator) for target in touched}
    share = sum(_size(target) for target in touched) / sum(_size(target) for target in unet)
    return [Adapter(LoraWeights(deltas, f"trial {rank} {i}", "a trial LoRA")) for i in range(count)], share


def _random_delta(target: Target, rank: int, generator: torch.Generator) -> LowRank:
    up, down = (
        torch.randn(*shape, generator=generator, device=generator.device) * _STRENGTH
        for shape in ((target.shape[0], rank), (rank, _size(target) // target.shape[0]))
    )
    return LowRank(up, down, 1.0, target.shape)


def _size(target: Target) -> int:
    return torch.Size(target.shape).numel()
