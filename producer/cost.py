"""What was spent: seconds of the device, by tenant and by LoRA, and at a price an hour what they cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from farm.schemas import JobResult
from farm.states import JobState

_DEVICE_STAGES = ("lora", "vae_encode", "denoise", "vae_decode")
NO_LORA = "(none)"


def gpu_seconds(result: JobResult) -> float:
    """Seconds that a job held the device for all of its pictures; results of release 0.1.0 have only their stages."""
    return result.gpu_seconds or sum(result.timings.get(stage, 0.0) for stage in _DEVICE_STAGES)


@dataclass
class Share:
    """Of the jobs of one tenant, or with one LoRA."""

    jobs: int = 0
    images: int = 0
    gpu_seconds: float = 0.0
    lora_swap_seconds: float = 0.0

    def add(self, result: JobResult) -> None:
        self.jobs += 1
        self.images += len(result.outputs)
        self.gpu_seconds += gpu_seconds(result)
        self.lora_swap_seconds += result.lora_swap_seconds

    @property
    def seconds_per_image(self) -> float | None:
        """The device's seconds a picture that was written, also those that came to nothing; None before the first."""
        return self.gpu_seconds / self.images if self.images else None

    def price(self, per_hour: float) -> float:
        return self.gpu_seconds / 3600 * per_hour

    def to_dict(self, per_hour: float) -> dict[str, Any]:
        each = self.seconds_per_image
        told = {
            "jobs": self.jobs,
            "images": self.images,
            "gpu_seconds": round(self.gpu_seconds, 3),
            "gpu_seconds_per_image": None if each is None else round(each, 4),
            "lora_swap_seconds": round(self.lora_swap_seconds, 4),
        }
        return {**told, "cost": round(self.price(per_hour), 4)} if per_hour else told


@dataclass
class Costs:
    """Adds results up. A job with several LoRAs counts for each of them, so their shares may add up to more than all.

    Memory grows with the number of tenants, LoRAs and error codes, not with that of results.
    """

    total: Share = field(default_factory=Share)
    tenants: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    loras: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, results: Iterable[JobResult]) -> Self:
        costs = cls()
        for result in results:
            costs.add(result)
        return costs

    def add(self, result: JobResult) -> None:
        self.states[result.status.value] += 1
        if result.error is not None and result.status is not JobState.CANCELED:
            self.failures[result.error.code] += 1
        self.total.add(result)
        self.tenants[result.tenant].add(result)
        for path in {lora.path for lora in result.loras} or {NO_LORA}:
            self.loras[path].add(result)

    def to_dict(self, per_hour: float = 0.0) -> dict[str, Any]:
        """Plain data; with prices where `per_hour` is one."""
        return {
            **self.total.to_dict(per_hour),
            "states": dict(self.states),
            "failures": dict(self.failures.most_common()),
            "by_tenant": {name: share.to_dict(per_hour) for name, share in sorted(self.tenants.items())},
            "by_lora": {path: share.to_dict(per_hour) for path, share in sorted(self.loras.items())},
        }
