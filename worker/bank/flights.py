"""Loads that many jobs may want at once: each is made once, by threads of its own, and waited for by all of them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from farm.errors import Preempted
from farm.storage import Progress

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # how often one who waits tells that the load goes on, and hears whether the job is still wanted


class Flight:
    """One load. `urgent` says that a job waits for it; without, it is made ahead of the job's turn. `since` is how old
    what it sees may be.

    `work(flight)` makes it and calls `moved` with the bytes that it read; what it leaves in `afterwards` is called
    when those who wait have been served, unless it failed.
    """

    def __init__(self, work: Callable[[Flight], Any], since: float, *, urgent: bool):
        self.urgent, self.since = urgent, since
        self.afterwards: Callable[[], None] | None = None
        self.begun = False
        self.bytes = 0
        self._work = work
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def moved(self, size: int) -> None:
        self.bytes += size

    def make(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is for those who wait to judge
            self._error = error

    def follow_up(self) -> None:
        if self.afterwards is None or self.failed:
            return
        try:
            self.afterwards()
        except Exception:
            log.exception("what follows a load failed; nobody waits for it")

    def refuse(self, error: BaseException) -> None:
        self._error = error
        self.land()

    def land(self) -> None:
        self._done.set()

    def wait(self, progress: Progress | None, others: Callable[[], int]) -> None:
        """Until it has landed. `progress` hears of bytes that move, here or, while this one has not begun, in the
        `others`; what it raises ends the wait and not the load.
        """
        seen = others()
        while not self._done.wait(_LOOK_SECONDS):
            if progress is not None:
                now = self.bytes if self.begun else others()
                progress(max(0, now - seen))
                seen = now

    @property
    def failed(self) -> bool:
        return self._error is not None

    def result(self) -> Any:
        """What `work` returned; or what it raised, as an exception of the caller's own."""
        if self._error is not None:
            raise own(self._error) from self._error
        return self._result


class Flights:
    """Up to `threads` loads at once, what jobs wait for first; what is made ahead of time takes no more than half."""

    def __init__(self, threads: int):
        self._threads, self._ahead_at_once = threads, max(1, threads // 2)
        self._air: dict[Hashable, Flight] = {}
        self._urgent: deque[tuple[Hashable, Flight]] = deque()
        self._ahead: deque[tuple[Hashable, Flight]] = deque()
        self._ahead_now = self._started = 0
        self._bytes_landed = 0
        self._changed = threading.Condition()
        self._closed = False

    def start(self, key: Hashable, work: Callable[[Flight], Any], since: float, *, urgent: bool) -> Flight:
        """The load `key` that is in the air, else a new one. An urgent one overtakes those made ahead of time."""
        with self._changed:
            if self._closed:
                raise Preempted("The worker is ending and loads no more weights.")
            flight = self._air.get(key)
            if flight is None:
                flight = self._air[key] = Flight(work, since, urgent=urgent)
                (self._urgent if urgent else self._ahead).append((key, flight))
            elif urgent and not flight.urgent:
                flight.urgent = True
                if not flight.begun:  # it stays in the other line, too, where it is passed over
                    self._urgent.append((key, flight))
            if self._started < self._threads:  # daemons: a store that hangs must not keep the process from its end
                self._started += 1
                threading.Thread(target=self._serve, name=f"weights-{self._started}", daemon=True).start()
            self._changed.notify()
            return flight

    def wait(self, flight: Flight, progress: Progress | None) -> None:
        flight.wait(progress, self._moved)

    def close(self) -> None:
        """Begin no more loads; those who wait for one that has not begun get Preempted."""
        with self._changed:
            self._closed = True
            waiting = [flight for flight in self._air.values() if not flight.begun]
            self._urgent.clear()
            self._ahead.clear()
            self._changed.notify_all()
        for flight in waiting:
            flight.refuse(Preempted("The worker is ending and loads no more weights."))

    def _moved(self) -> int:
        with self._changed:
            return self._bytes_landed + sum(flight.bytes for flight in self._air.values())

    def _serve(self) -> None:
        while (taken := self._next()) is not None:
            key, flight, ahead = taken
            flight.make()
            with self._changed:
                del self._air[key]
                self._bytes_landed += flight.bytes
            flight.land()
            flight.follow_up()
            with self._changed:
                self._ahead_now -= ahead
                self._changed.notify()

    def _next(self) -> tuple[Hashable, Flight, bool] | None:
        with self._changed:
            while not self._closed:
                ahead = not self._urgent
                line = self._ahead if ahead else self._urgent
                if line and not (ahead and self._ahead_now >= self._ahead_at_once):
                    key, flight = line.popleft()
                    if flight.begun:
                        continue
                    flight.begun = True
                    self._ahead_now += ahead
                    return key, flight, ahead
                self._changed.wait()
            return None


def own(error: BaseException) -> BaseException:
    """The same error once more: several threads that raised one object would write into each other's tracebacks."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    return twin
