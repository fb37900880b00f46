"""What a run will take: pictures × the measured seconds of a GPU for one, and at a price an hour what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from farm.errors import QueueUnavailable
from producer.batch import BatchHandle
from producer.client import Client
from producer.cost import Costs


@dataclass(frozen=True)
class Rate:
    """Seconds of a GPU for one picture; `source` says in words where that was measured."""

    seconds_per_image: float
    source: str


@dataclass(frozen=True)
class Quote:
    """`rate` is None where nothing like it was rendered yet."""

    jobs: int
    images: int
    rate: Rate | None
    per_hour: float = 0.0

    @property
    def gpu_hours(self) -> float | None:
        return None if self.rate is None else self.images * self.rate.seconds_per_image / 3600

    @property
    def cost(self) -> float | None:
        hours = self.gpu_hours
        return None if hours is None or not self.per_hour else hours * self.per_hour

    def to_dict(self) -> dict[str, Any]:
        return {
            "jobs": self.jobs,
            "images": self.images,
            "gpu_seconds_per_image": self.rate and self.rate.seconds_per_image,
            "rate_from": self.rate and self.rate.source,
            "gpu_hours": self.gpu_hours,
            "cost": self.cost,
        }

    def __str__(self) -> str:
        what = f"{self.jobs:,} jobs, {self.images:,} pictures"
        if self.rate is None or self.gpu_hours is None:
            return f"{what}; no measured rate yet: render a --sample, or give --rate SECONDS a picture"
        told = f"{what}: about {self.gpu_hours:,.2f} GPU-hours"
        told += "" if self.cost is None else f", {self.cost:,.2f} at {self.per_hour:g} an hour"
        return f"{told} ({self.rate.seconds_per_image:.3g} s a picture, {self.rate.source})"


def rate_of(costs: Costs, source: str) -> Rate | None:
    """The rate of results that are there."""
    seconds = costs.total.seconds_per_image
    return None if not seconds else Rate(seconds, source)


def rate_from_batch(batch: BatchHandle) -> Rate | None:
    """The rate of a batch that ended, or of what ended of it."""
    costs = Costs.of(batch.results())
    return rate_of(costs, f"measured over {costs.total.images:,} pictures of batch {batch.id}")


def rate_from_index(client: Client, model: str) -> Rate | None:
    """Seconds a job of all that the farm rendered of this model since its Redis began; None where that is not told.

    It is of whatever others render: steps and sizes may be far from this run's.
    """
    try:
        jobs, spent = client.index.spent(model)
    except QueueUnavailable:  # an SDK's role may not read these
        return None
    return Rate(spent / jobs, f"measured over the farm's last {jobs:,} jobs of {model}") if jobs and spent else None
