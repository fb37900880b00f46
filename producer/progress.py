"""How far something is: on a terminal a bar with rate, time left and failures by code, elsewhere a line at times."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from farm.schemas import JobResult
from farm.states import JobState

_LINE_SECONDS = 15.0  # between two lines where there is no terminal
_RATE_SECONDS = 60.0  # what the rate is an average of


class JobProgress:
    """Told of each result. Writes to standard error, so that standard output stays the answer's."""

    def __init__(self, total: int, *, as_json: bool = False, done: int = 0):
        self._total, self._json = total, as_json
        self._states: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._ended, self._known = 0, done
        self._marks = [(time.monotonic(), 0)]
        self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[failures]}"),
            console=console, speed_estimate_period=_RATE_SECONDS,
        )  # fmt: skip
        self._live = console.is_terminal and not as_json
        self._task = self._bar.add_task("jobs", total=total, rate="", failures="")

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def add(self, result: JobResult) -> None:
        self._ended += 1
        self._states[result.status.value] += 1
        if result.error is not None and result.status is not JobState.CANCELED:
            self._failures[result.error.code] += 1
        self.show()

    def show(self) -> None:
        """How far it is; called without news, too, since the clock goes on."""
        now = time.monotonic()
        if self._live:
            self._bar.update(
                self._task, completed=self._ended, rate=f"{self._rate(now):.2f} jobs/s", failures=self._failed()
            )
        elif now - self._said > _LINE_SECONDS:
            self._said = now
            self._line(now)

    def _rate(self, now: float) -> float:
        """Jobs a second, of those that ended under these eyes within the last minute."""
        seen = max(0, self._ended - self._known)
        if now - self._marks[-1][0] > 1.0:
            self._marks.append((now, seen))
            self._marks = [mark for mark in self._marks if now - mark[0] <= _RATE_SECONDS] or [(now, seen)]
        begin, before = self._marks[0]
        return (seen - before) / (now - begin) if now > begin else 0.0

    def _failed(self) -> str:
        return ", ".join(f"{code} {count}" for code, count in self._failures.most_common(4))

    def _line(self, now: float) -> None:
        rate = self._rate(now)
        left = (self._total - self._ended) / rate if rate else None
        if self._json:
            told = {
                "event": "progress", "ended": self._ended, "jobs": self._total, "states": dict(self._states),
                "failures": dict(self._failures), "jobs_per_second": round(rate, 3),
                "seconds_left": None if left is None else round(left),
            }  # fmt: skip
            sys.stderr.write(json.dumps(told) + "\n")
            return
        words = f"{self._ended:,} of {self._total:,} ended, {rate:.2f} jobs/s"
        words += "" if left is None else f", {left / 60:,.0f} min left"
        words += f"; failed: {self._failed()}" if self._failures else ""
        sys.stderr.write(words + "\n")
