"""How long this worker takes: seconds of each stage by the size of the work, the newest measurements weighing most."""

from __future__ import annotations

import math

from worker.engine.stopwatch import Work

_NEWEST = 0.3  # weight of the latest measurement in the moving average


class Pace:
    """Exponentially weighted means. One thread may write while others read."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, Work], float] = {}

    def observe(self, stage: str, work: Work, seconds: float) -> None:
        before = self._seconds.get((stage, work), seconds)
        self._seconds[stage, work] = before + _NEWEST * (seconds - before)

    def seconds(self, stage: str, work: Work) -> float:
        """Of `stage` for `work`; if that was never measured, scaled from the nearest that was, else infinity."""
        known = {other: value for (name, other), value in self._seconds.copy().items() if name == stage}
        if work in known or not known:
            return known.get(work, math.inf)
        nearest = min(known, key=lambda other: abs(math.log(other.volume / work.volume)))
        return known[nearest] * work.volume / nearest.volume
