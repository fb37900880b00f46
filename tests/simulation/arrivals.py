"""Work that comes in: a day of GenTD26's mix, and a million images at once.

How much work a job is (images, steps) is the mix's (`tests/benchmarks/trace.py`: read from a trace, or generated with
its statistics). When jobs come is ours: the trace tells no times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.trace import TraceJob

DAY = 86_400.0
USUAL_STEPS = 30  # where a trace does not say
_NIGHT = 0.25  # of the rate at midday
_CATALOGUES = 12  # batches a day, which hold half of its jobs
_LOW = 0.1  # of the jobs are of low priority: work that may wait for workers that others have called


@dataclass(slots=True)
class Job:
    """`seconds`: what one device needs for it, `left`: of these, what no worker has done and kept."""

    accepted: float
    images: int
    seconds: float
    left: float
    low: bool = False


@dataclass(frozen=True)
class Device:
    """Seconds of one device. An assumption (a mid-range data centre GPU at 512², two rows a step), not a measurement:
    the policies are compared on the same one."""

    step: float = 0.05
    image: float = 0.3  # text encoder, VAE, decoding, writing

    def seconds(self, images: int, steps: int) -> float:
        return images * (steps * self.step + self.image)


def _job(accepted: float, images: int, steps: int | None, device: Device, *, low: bool = False) -> Job:
    seconds = device.seconds(images, steps or USUAL_STEPS)
    return Job(accepted, images, seconds, seconds, low)


def day(mix: Sequence[TraceJob], device: Device, seed: int) -> list[Job]:
    """As many jobs as `mix` has within 24 h: half of them one by one, fewer at night, the rest in catalogues of like
    length. A catalogue's rows are alike: it draws one job of the mix."""
    draw = random.Random(seed)
    single = len(mix) // 2
    jobs = [_job(_hour(draw), job.images or 1, job.steps, device, low=draw.random() < _LOW) for job in mix[:single]]
    for _ in range(_CATALOGUES):
        at, row = _hour(draw), draw.choice(mix)
        jobs += (_job(at, row.images or 1, row.steps, device) for _ in range((len(mix) - single) // _CATALOGUES))
    return sorted(jobs, key=_accepted)


def _accepted(job: Job) -> float:
    return job.accepted


def _hour(draw: random.Random) -> float:
    """Seconds after midnight; most at noon, `_NIGHT` of it at midnight (by rejection)."""
    while True:
        at = draw.random() * DAY
        if draw.random() < _NIGHT + (1 - _NIGHT) * (1 - math.cos(2 * math.pi * at / DAY)) / 2:
            return at


def run(mix: Sequence[TraceJob], images: int, device: Device, seed: int) -> list[Job]:
    """A catalogue, accepted at once: a job an image, with the mix's steps."""
    draw = random.Random(seed)
    return [_job(0.0, 1, draw.choice(mix).steps, device) for _ in range(images)]


def alike(count: int, seconds: float, *, low: bool = False, at: float = 0.0) -> Iterator[Job]:
    """Jobs of one size."""
    return (Job(at, 1, seconds, seconds, low) for _ in range(count))
