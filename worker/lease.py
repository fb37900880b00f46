"""A job's lease, renewed from a thread of its own while the job makes progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from farm.errors import Canceled, QueueUnavailable
from farm.ledger import JobRef, Ledger


class Lease:
    """Beats at a quarter of the lease, but only if the progress counter moved since the last beat.

    While the job waits its turn in the engine, the engine's own counter is its progress (`follow`).
    A job that hangs therefore loses its lease although its process lives. A refused beat (canceled, or somebody
    else's by now) makes `check` raise, and with it the job's next step.
    """

    def __init__(self, ledger: Ledger, ref: JobRef, owner: str, *, lease_seconds: float):
        self._ledger, self._ref, self._owner, self._seconds = ledger, ref, owner, lease_seconds
        self._moves = 0
        self._others: Callable[[], int] = lambda: 0
        self._lost = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{ref.job_id[:8]}", daemon=True)

    def moved(self, amount: int = 1) -> None:
        """Say that work went on: bytes read or written, a step made. Raises Canceled when the lease is lost."""
        self._moves += amount
        self.check()

    @contextmanager
    def follow(self, progress: Callable[[], int]) -> Iterator[None]:
        """Within, a change of `progress()` counts as the job's own."""
        self._others = progress
        try:
            yield
        finally:
            self._others = lambda: 0

    def check(self) -> None:
        if self._lost.is_set():
            raise Canceled("The job is no longer this worker's: it was canceled, or its lease ended.")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        seen = None
        while not self._end.wait(self._seconds / 4):
            now = (self._moves, self._others())
            if now == seen:
                continue
            seen = now
            try:
                if not self._ledger.beat(self._ref, self._owner, lease_seconds=self._seconds):
                    self._lost.set()
                    return
            except QueueUnavailable:
                continue  # Redis may be back before the lease ends; if not, another worker takes the job
