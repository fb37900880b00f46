"""How many workers there shall be: KEDA and the HorizontalPodAutoscaler that it makes, as they calculate it.

What is simulated is the chart's own object (`Scaling.of_chart`). The arithmetic follows their documentation and source:
kedacore/keda `pkg/scaling/executor` (to one and to zero), kubernetes/kubernetes `pkg/controller/podautoscaler`
(external metric of type AverageValue, tolerance, stabilization windows, scaling policies).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Self

from tests.helm.chart import merged, only, render, values_of

HPA_SYNC = 15.0  # seconds; the controller manager's default
TOLERANCE = 0.1  # likewise


@dataclass(frozen=True)
class Reading:
    """The work that may call workers, in four ways of telling it."""

    jobs: int  # that have not ended
    seconds: float  # these times the dispatcher's own mean (farm/dispatcher/job_seconds.py)
    lasting: float  # these times the mean of all that ever ended
    exact: float  # each by what it will take, which nobody knows


@dataclass(frozen=True)
class Limit:
    """A scaling policy: within `period` seconds not more than so many pods, or percent of those at its begin."""

    percent: bool
    value: int
    period: float

    def after(self, count: int, sign: int) -> int:
        """The most (sign +1) or the least (−1) that `count` may become."""
        if not self.percent:
            return count + sign * self.value
        share = count * (1 + sign * self.value / 100)
        return math.ceil(share) if sign > 0 else math.floor(share)


@dataclass(frozen=True)
class Scaling:
    name: str
    metric: Callable[[Reading], float]
    target: float  # of the metric, for one worker
    least: int
    most: int
    polling: float
    cooldown: float
    up: tuple[Limit, ...]
    down: tuple[Limit, ...]
    up_window: float
    down_window: float

    @classmethod
    def of_chart(cls, name: str, most: int, drain: int) -> Self:
        """The ScaledObject of a pool that drains its backlog within `drain` seconds, from none to `most` workers."""
        pool = {"name": "spot", "backlogShare": 1, "minReplicas": 0, "maxReplicas": most, "targetDrainSeconds": drain}
        values = merged(values_of("values-production"), {"pools": [pool]})
        spec = only(render(values), "ScaledObject")["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        (trigger,) = spec["triggers"]
        return cls(
            name,
            metric=attrgetter("seconds"),
            target=float(trigger["metadata"]["threshold"]),
            least=spec["minReplicaCount"],
            most=spec["maxReplicaCount"],
            polling=spec["pollingInterval"],
            cooldown=spec["cooldownPeriod"],
            up=_limits(behavior["scaleUp"]["policies"]),
            down=_limits(behavior["scaleDown"]["policies"]),
            up_window=behavior["scaleUp"]["stabilizationWindowSeconds"],
            down_window=behavior["scaleDown"]["stabilizationWindowSeconds"],
        )


def policies(mix_mean: float, *, drain: int, most: int) -> tuple[Scaling, ...]:
    """The chart's, the same with a worse and the best of estimates, and two settings of scaling on queue length.

    `mix_mean`: seconds of the mix's mean job, which whoever chooses jobs per worker has to know beforehand.
    """
    ours = Scaling.of_chart("backlog in seconds (the chart)", most, drain)
    # Kubernetes' and KEDA's defaults: https://keda.sh/docs/latest/scalers/redis-lists/ (listLength),
    # https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#default-behavior
    by_default = replace(
        ours, name="queue length, 5 jobs a worker (KEDA's default)", metric=attrgetter("jobs"), target=5,
        up=(Limit(True, 100, 15), Limit(False, 4, 15)), down=(Limit(True, 100, 15),), down_window=300,
    )  # fmt: skip
    return (
        ours,
        replace(ours, name="the same, by the mean of all jobs ever", metric=attrgetter("lasting")),
        replace(ours, name="the same, every job's seconds known", metric=attrgetter("exact")),
        replace(ours, name="queue length, tuned to the mix's mean", metric=attrgetter("jobs"), target=drain / mix_mean),
        by_default,
    )


def _limits(policies: Sequence[Mapping[str, Any]]) -> tuple[Limit, ...]:
    return tuple(Limit(one["type"] == "Percent", one["value"], one["periodSeconds"]) for one in policies)


class Autoscaler:
    """Both controllers of one pool. `count` is the Deployment's `replicas`; times are seconds of the simulation."""

    def __init__(self, scaling: Scaling):
        self.scaling = scaling
        self._active_at = -math.inf
        self._wanted: deque[tuple[float, int]] = deque()
        longest = max(one.period for one in scaling.up + scaling.down)
        self._changes: deque[tuple[float, int]] = deque(maxlen=math.ceil(longest / HPA_SYNC) + 1)

    def keda(self, now: float, reading: Reading, count: int) -> int:
        """KEDA itself only starts the first worker, and ends the last ones when nothing is left for `cooldown`."""
        if self.scaling.metric(reading) > 0:
            self._active_at = now
            return count or max(1, self.scaling.least)
        if count and not self.scaling.least and now > self._active_at + self.scaling.cooldown:
            return 0
        return max(count, self.scaling.least)

    def hpa(self, now: float, reading: Reading, count: int) -> int:
        """The rest, between 1 and the most; a Deployment without replicas it leaves alone."""
        if not count:
            return 0
        value, target = self.scaling.metric(reading), self.scaling.target
        wanted = count if abs(1 - value / (target * count)) <= TOLERANCE else math.ceil(value / target)
        steady = self._steady(now, wanted, count)
        chosen = min(max(self._gradual(now, steady, count), 1, self.scaling.least), self.scaling.most)
        if chosen != count:
            self._changes.append((now, chosen - count))
        return chosen

    def _steady(self, now: float, wanted: int, count: int) -> int:
        """Up to the least that was wanted in the one window, down to the most that was wanted in the other."""
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - max(self.scaling.up_window, self.scaling.down_window):
            self._wanted.popleft()
        up = min(some for at, some in self._wanted if at >= now - self.scaling.up_window)
        down = max(some for at, some in self._wanted if at >= now - self.scaling.down_window)
        return max(up, min(count, down))

    def _gradual(self, now: float, steady: int, count: int) -> int:
        """Not faster than the policy that allows the most."""
        if steady > count:
            return min(steady, max(limit.after(self._before(now, limit, count), +1) for limit in self.scaling.up))
        if steady < count:
            return max(steady, min(limit.after(self._before(now, limit, count), -1) for limit in self.scaling.down))
        return count

    def _before(self, now: float, limit: Limit, count: int) -> int:
        """How many there were when the period of `limit` began."""
        return count - sum(change for at, change in self._changes if at > now - limit.period)
