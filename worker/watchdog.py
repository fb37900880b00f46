"""The end of a process whose device stands still.

A kernel that never returns cannot be interrupted: neither an exception nor a time limit reaches the thread that waits
for it. The cure is a new process. What blocks the interpreter itself, this thread included, is /healthz's to notice.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

STALLED = 70  # the exit code, sysexits.h's EX_SOFTWARE


class Watchdog:
    """Ends the process when a render is in progress and its counter has not moved for `stall_seconds`.

    `busy()` tells whether one is, `progress()` is the counter. Before the end `not_ready()` is called and every
    thread's stack is logged; `end` then gets the exit code 70. Time in which the process itself was stopped (SIGSTOP,
    a frozen machine) counts as no more than two looks: nothing could have moved in it.
    """

    def __init__(
        self,
        *,
        busy: Callable[[], bool],
        progress: Callable[[], int],
        not_ready: Callable[[], object],
        stall_seconds: float,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._busy, self._progress, self._not_ready, self._end = busy, progress, not_ready, end
        self._stall_seconds, self._clock = stall_seconds, clock
        self.look_seconds = min(5.0, stall_seconds / 4)
        self._seen: int | None = None
        self._still = 0.0
        self._looked = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Compare the counter with the last look's; to be called about every `look_seconds`."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, 2 * self.look_seconds), now
        count = self._progress() if self._busy() else None
        if count is None or count != self._seen:
            self._seen, self._still = count, 0.0
            return
        self._still += passed
        if self._still >= self._stall_seconds:
            self._give_up()

    def _watch(self) -> None:
        while not self._stop.wait(self.look_seconds):
            self.look()

    def _give_up(self) -> None:
        try:
            self._not_ready()
            log.critical(
                "the device has done nothing for %.0f s: this process ends, and the job's lease with it\n%s",
                self._still,
                _stacks(),
            )
        except Exception:
            log.critical("the device stands still, and that could not be told in full", exc_info=True)
        finally:
            self._end(STALLED)


def _stacks() -> str:
    """Every thread's stack. faulthandler writes to file descriptors only."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
