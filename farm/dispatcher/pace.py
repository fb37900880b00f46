"""How many hints may be out, and how many jobs one stands for: as fits the speed at which jobs end."""

from __future__ import annotations

import time
from collections.abc import Callable

from farm.queue import MAX_HINT

HORIZON_SECONDS = 2.0  # hinted and not claimed: what the workers do in so long
LEAST_WINDOW, MOST_WINDOW = 32, 8192
HINT_SECONDS = 0.05  # one hint stands for the jobs that end in so long, all workers together


class Pace:
    """One model's speed, from a counter of ended jobs that is read now and then."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._at, self._count = now(), -1
        self.rate = 0.0  # jobs a second, smoothed over seconds

    def seen(self, finished: int) -> None:
        """The counter says so now."""
        at = self._now()
        passed = at - self._at
        if self._count < 0 or finished < self._count:  # first sight, or Redis began anew
            self._at, self._count = at, finished
        elif passed >= 0.2:
            share = min(1.0, passed / 2)
            self.rate += share * ((finished - self._count) / passed - self.rate)
            self._at, self._count = at, finished

    @property
    def window(self) -> int:
        """Jobs that may be hinted and not claimed. Few enough that an urgent one does not wait long behind them."""
        return max(LEAST_WINDOW, min(MOST_WINDOW, int(self.rate * HORIZON_SECONDS)))

    @property
    def hint_size(self) -> int:
        """Celery passes some 500 messages a second; where jobs end faster, a message stands for several."""
        return max(1, min(MAX_HINT, int(self.rate * HINT_SECONDS)))
