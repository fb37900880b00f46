"""The time a run may take, shared out among its stages; and the word to stop early."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts the seconds of a run over all its processes.

    `minutes` None: no stage ends by the clock. A stage is opened with the share of the minutes at which it has to end;
    what earlier stages took too long, or did not need, is its own.
    """

    def __init__(self, minutes: float | None, *, now: Callable[[], float] = time.monotonic):
        self._limit = None if minutes is None else 60 * minutes
        self._now, self._began, self._before = now, now(), 0.0
        self._stage = (0.0, 0.0)
        self._last_save = now()
        self.stopping = False

    @property
    def elapsed(self) -> float:
        """Seconds, those of earlier processes of the same run included."""
        return self._before + self._now() - self._began

    def open_stage(self, end: float) -> None:
        """`end` 0…1: when the stage has to be over, as a share of the whole."""
        self._stage = (self.elapsed, end * (self._limit or 0.0))
        self._last_save = self._now()

    @property
    def progress(self) -> float:
        """How much of the stage's time is over, 0 where there is no limit."""
        if self._limit is None:
            return 0.0
        begin, end = self._stage
        return 1.0 if end <= begin else (self.elapsed - begin) / (end - begin)

    @property
    def over(self) -> bool:
        return self.progress >= 1.0

    @property
    def left(self) -> float | None:
        """Seconds until the stage has to end, None where there is no limit."""
        return None if self._limit is None else max(0.0, self._stage[1] - self.elapsed)

    @property
    def since_saved(self) -> float:
        return self._now() - self._last_save

    def saved(self) -> None:
        self._last_save = self._now()

    def stop(self, *_: object) -> None:
        """Ask the stage that runs to save and to raise Stopped; also a signal handler."""
        self.stopping = True

    def state(self) -> dict[str, float]:
        return {"elapsed": self.elapsed, "begin": self._stage[0]}

    def resume(self, state: dict[str, float]) -> None:
        """Count on from a saved state of the stage that is open, unless this process has counted further."""
        if state["elapsed"] > self.elapsed:
            self._before, self._began = state["elapsed"], self._now()
        self._stage = (state["begin"], self._stage[1])
