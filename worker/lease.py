"""The leases of the jobs in hand, renewed from one thread while work makes progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from farm.errors import Canceled, QueueForbidden, QueueUnavailable
from farm.ledger import Beat, JobRef, Ledger


class Lease:
    """Beats at a quarter of the lease, but only if the progress counter moved since the last beat.

    It holds the jobs of one claim, which are done one after another: what moves for one keeps all of them. While a
    job waits its turn in the engine, the engine's own counter is its progress (`follow`); a stage that cannot tell how
    far it is has a deadline (`within`). A worker that hangs therefore loses its jobs although its process lives. A
    refused beat (canceled, or somebody else's by now) makes `check` of that job raise, and with it the job's next step;
    so does a beat that comes after the lease's end, because this process was stopped for longer.
    """

    def __init__(self, ledger: Ledger, refs: Sequence[JobRef], owner: str, *, lease_seconds: float):
        self._ledger, self._owner, self._seconds = ledger, owner, lease_seconds
        self._refs = {ref.job_id: ref for ref in refs}
        self._moves = 0
        self._others: Callable[[], int] = lambda: 0
        self._answers: dict[str, Beat] = {}
        self._end = threading.Event()
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{owner[-8:]}", daemon=True)

    def of(self, ref: JobRef) -> JobLease:
        return JobLease(self, ref.job_id)

    def move(self, amount: int) -> None:
        self._moves += amount

    @contextmanager
    def follow(self, progress: Callable[[], int]) -> Iterator[None]:
        """Within, a change of `progress()` counts as these jobs' own."""
        before, self._others = self._others, progress
        try:
            yield
        finally:
            self._others = before

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Within, and for so many seconds, time itself is progress: for work that cannot tell how far it is."""
        end = time.monotonic() + seconds
        with self.follow(lambda: round(1000 * min(time.monotonic(), end))):
            yield

    def drop(self, ref: JobRef) -> None:
        """A job that has ended, or was given back, is not renewed any more."""
        self._refs.pop(ref.job_id, None)

    def check(self, job_id: str) -> None:
        if self._answers.get(job_id) is Beat.CANCELED:
            raise Canceled("The job's batch was canceled.")
        if job_id in self._answers:
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
            held = list(self._refs.values())
            if now == seen or not held:
                continue
            if time.monotonic() - self._renewed > self._seconds:
                self._answers.update(dict.fromkeys(self._refs, Beat.LOST))
                return
            began = time.monotonic()
            try:
                answers = self._ledger.beat(held, self._owner, lease_seconds=self._seconds)
            except (QueueUnavailable, QueueForbidden):
                continue  # Redis may be back before the lease ends; if not, another worker takes the jobs
            seen, self._renewed = now, began
            for ref, answer in zip(held, answers, strict=True):
                if answer is not Beat.HELD:
                    self._answers[ref.job_id] = answer
                    self.drop(ref)


class JobLease:
    """One job's view of the lease it is held by."""

    def __init__(self, lease: Lease, job_id: str):
        self._lease, self._job_id = lease, job_id

    def moved(self, amount: int = 1) -> None:
        """Say that work went on: bytes read or written, a step made. Raises Canceled when the job is lost."""
        self._lease.move(amount)
        self._lease.check(self._job_id)

    def follow(self, progress: Callable[[], int]) -> AbstractContextManager[None]:
        return self._lease.follow(progress)

    def within(self, seconds: float) -> AbstractContextManager[None]:
        return self._lease.within(seconds)
