"""What a run says: a JSON line for each few steps, and on the terminal how fast it goes and how long it has to."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from worker.demo.training.clock import Clock


class Journal:
    """`path` collects the lines of all stages, each with stage, step, loss, gradient norm, rate and seconds."""

    def __init__(self, path: Path, clock: Clock, out: TextIO = sys.stderr):
        self._path, self._clock, self._out = path, clock, out
        self._stage, self._total, self._batch = "", 0, 0
        self._first = (0, 0.0)
        self._said = 0.0

    def begin(self, stage: str, step: int, total: int, batch: int) -> None:
        """A stage of `total` steps starts at `step`; lines of a try that went further are dropped."""
        self._stage, self._total, self._batch = stage, total, batch
        self._first, self._said = (step, time.monotonic()), 0.0
        kept = [line for line in read_journal(self._path) if line["stage"] != stage or line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def write(self, step: int, **numbers: float) -> None:
        line = {"stage": self._stage, "step": step, **numbers, "seconds": round(self._clock.elapsed, 2)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        now = time.monotonic()
        if now - self._said > (0.5 if self._out.isatty() else 15):
            self._said = now
            self._say(self._line(step, numbers), "\r" if self._out.isatty() else "\n")

    def note(self, done: int, total: int, unit: str, began: float) -> None:
        """Progress of work that has no loss."""
        now = time.monotonic()
        if now - self._said > (0.5 if self._out.isatty() else 15) or done >= total:
            self._said = now
            rate = done / max(now - began, 1e-9)
            left = _minutes((total - done) / rate)
            text = f"{self._stage:12} {done}/{total} {unit}, {rate:.0f} {unit}/s, {left} left"
            self._say(text, "\r" if self._out.isatty() and done < total else "\n")

    def open(self, name: str) -> None:
        """Work without steps begins."""
        self._stage, self._said = name, 0.0

    def end(self, step: int) -> None:
        first, began = self._first
        seconds = time.monotonic() - began
        self._say(f"{self._stage:12} done at step {step}; {step - first} steps here in {_minutes(seconds)}", "\n")

    def _line(self, step: int, numbers: dict[str, float]) -> str:
        first, began = self._first
        rate = (step - first) / max(time.monotonic() - began, 1e-9)
        progress = max(step / self._total, self._clock.progress)
        by_steps = (self._total - step) / max(rate, 1e-9)
        by_clock = self._clock.left if self._clock.left is not None else by_steps
        return (
            f"{self._stage:12} step {step}/{self._total} ({progress:.0%})  loss {numbers['loss']:.4f}  "
            f"{rate * self._batch:.0f} samples/s  {_minutes(min(by_steps, by_clock))} left"
        )

    def _say(self, text: str, end: str) -> None:
        self._out.write(text.ljust(100) + end)
        self._out.flush()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, none if it is not there; a line that a crash cut off is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
