"""What a job of a model takes: the mean of the last few hundred, since jobs become larger and smaller."""

from __future__ import annotations

LATELY = 500  # jobs


class JobSeconds:
    """Fed with totals: jobs that ever ended, and the seconds that workers spent on them."""

    def __init__(self) -> None:
        self._finished, self._spent = 0, 0.0
        self.mean = 1.0
        """A guess, until the first has ended."""

    def seen(self, finished: int, spent: float) -> float:
        """The mean as of now. The first totals count as a whole: what came before them is not known more finely."""
        if finished < self._finished:  # Redis began anew
            self._finished, self._spent = 0, 0.0
        if new := finished - self._finished:
            share = min(1.0, new / min(finished, LATELY))
            self.mean += share * ((spent - self._spent) / new - self.mean)
            self._finished, self._spent = finished, spent
        return self.mean
