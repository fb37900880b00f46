"""How long this worker takes: seconds of each stage by the size of the work, the newest measurements weighing most."""

from __future__ import annotations

import math
from typing import NamedTuple

_NEWEST = 0.3  # weight of the latest measurement in the moving average


class Shape(NamedTuple):
    """What goes through the device at once: `rows` of `width` × `height` pixels."""

    width: int
    height: int
    rows: int

    @property
    def volume(self) -> int:
        return self.width * self.height * self.rows


class Pace:
    """Exponentially weighted means. One thread may write while others read."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, Shape], float] = {}

    def observe(self, stage: str, shape: Shape, seconds: float) -> None:
        before = self._seconds.get((stage, shape), seconds)
        self._seconds[stage, shape] = before + _NEWEST * (seconds - before)

    def seconds(self, stage: str, shape: Shape) -> float:
        """Of `stage` for `shape`; if that was never measured, scaled from the nearest that was, else infinity."""
        known = {other: value for (name, other), value in self._seconds.copy().items() if name == stage}
        if shape in known or not known:
            return known.get(shape, math.inf)
        nearest = min(known, key=lambda other: abs(math.log(other.volume / shape.volume)))
        return known[nearest] * shape.volume / nearest.volume
