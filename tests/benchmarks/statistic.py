"""Medians, their intervals, and contenders that take turns: what a benchmark says of seconds.

Contenders are timed in one process and in turns, in another order each round, so that a machine that slows down slows
all of them; what is compared are the seconds of one round, and what is said is the median over the rounds with the 95 %
interval of a percentile bootstrap (Efron 1979, https://doi.org/10.1214/aos/1176344552).
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A median and the 95 % interval of it; of one measurement, the interval is unknown and shown as such."""

    median: float
    low: float
    high: float
    count: int

    def text(self, format_one: Callable[[float], str]) -> str:
        if self.count < 2:
            return f"{format_one(self.median)} (once)"
        return f"{format_one(self.median)} [{format_one(self.low)}, {format_one(self.high)}]"


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The median of `values`, not empty, and how sure it is."""
    draw, middle = random.Random(seed), statistics.median(values)
    if len(values) < 2:
        return Interval(middle, middle, middle, 1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(middle, medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1], len(values))


def ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Interval:
    """Of paired measurements: the median of the pairs' ratios."""
    return interval([a / b for a, b in zip(above, below, strict=True)], seed)


def difference(of: Sequence[float], less: Sequence[float], seed: int = 0) -> Interval:
    return interval([a - b for a, b in zip(of, less, strict=True)], seed)


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def times(value: float) -> str:
    return f"{value:.2f}×"


def percent(part: float) -> str:
    return f"{100 * part:.1f} %"


class Progress:
    """Says on standard error, at most every five seconds, how far a benchmark is, how fast, and how long it takes."""

    def __init__(self, what: str, total: int, unit: str = "runs"):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._began, self._said = 0, time.monotonic(), time.monotonic()

    def step(self, done: int = 1) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._said < 5 and self._done < self._total:
            return
        self._said, rate = now, self._done / max(1e-9, now - self._began)
        left = max(0, self._total - self._done) / rate
        sys.stderr.write(
            f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.2f}/s, {left:,.0f} s left\n"
        )


def seconds(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def on_device(do: Callable[[], object], device: str) -> Callable[[int], float]:
    """A contender: the seconds of `do`, without gradients, to the device's last kernel."""

    def whole() -> None:
        with torch.no_grad():
            do()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return lambda _: seconds(whole)


def interleaved(
    contenders: Mapping[str, Callable[[int], float]], rounds: int, *, what: str, warm_up: int = 1
) -> dict[str, list[float]]:
    """What each contender measured in each round; a contender is called with the round's number, from −`warm_up` on.

    Rounds below 0 are not counted. The order turns by one each round, so that none always follows the same other.
    """
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    progress = Progress(what, (rounds + warm_up) * len(names))
    for number in range(-warm_up, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = contenders[name](number)
            if number >= 0:
                found[name].append(taken)
            progress.step()
    return found
