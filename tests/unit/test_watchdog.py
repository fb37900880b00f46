"""A device that stands still ends the process; whatever else takes its time does not."""

import logging
import subprocess
import sys
import threading

import pytest

from worker.watchdog import STALLED, Watchdog


class Bench:
    """A watchdog of 100 seconds over a device that the test plays, by a clock of its own."""

    def __init__(self, not_ready=None):
        self.now, self.count, self.busy, self.events = 0.0, 0, True, []
        self.watchdog = Watchdog(
            busy=lambda: self.busy,
            progress=lambda: self.count,
            not_ready=not_ready or (lambda: self.events.append("not ready")),
            stall_seconds=100.0,
            end=self.events.append,
            clock=lambda: self.now,
        )

    def wait(self, seconds: float, *, working: bool = False) -> None:
        for _ in range(round(seconds / self.watchdog.look_seconds)):
            self.now += self.watchdog.look_seconds
            self.count += working
            self.watchdog.look()
            if STALLED in self.events:
                return


def test_a_stalled_render_ends_the_process_once_the_limit_is_reached(caplog):
    bench = Bench()
    bench.wait(300, working=True)
    bench.wait(95)
    assert not bench.events
    bench.wait(15)
    assert bench.events == ["not ready", STALLED]
    assert 395 <= bench.now <= 410
    assert "in test_a_stalled_render_ends" in caplog.text, "the stacks are in the log"


def test_an_idle_worker_may_stand_still():
    bench = Bench()
    bench.busy = False
    bench.wait(1000)
    assert not bench.events


def test_time_counts_from_the_beginning_of_the_render():
    bench = Bench()
    bench.wait(90)
    bench.busy = False
    bench.wait(20)
    bench.busy = True
    bench.wait(90)
    assert not bench.events
    bench.wait(30)
    assert bench.events == ["not ready", STALLED]


def test_one_sign_of_life_is_enough():
    bench = Bench()
    for _ in range(5):
        bench.wait(90)
        bench.count += 1
    assert not bench.events


def test_time_in_which_the_process_was_stopped_is_no_stall():
    bench = Bench()
    bench.wait(50)
    bench.now += 10_000  # SIGSTOP … SIGCONT
    bench.watchdog.look()
    bench.wait(30)
    assert not bench.events
    bench.wait(30)
    assert bench.events == ["not ready", STALLED]


def test_it_ends_even_if_that_cannot_be_told(caplog):
    def broken():
        raise OSError("no health server")

    bench = Bench(broken)
    bench.wait(200)
    assert bench.events == [STALLED] and "no health server" in caplog.text


def test_the_thread_looks_by_itself_and_stops():
    ended = threading.Event()
    watchdog = Watchdog(
        busy=lambda: True, progress=lambda: 1, not_ready=lambda: None, stall_seconds=0.1, end=lambda code: ended.set()
    )
    watchdog.start()
    assert ended.wait(10)
    watchdog.stop()
    assert not watchdog._thread.is_alive()


PROGRAM = """
import logging, threading, time
from worker.watchdog import Watchdog

logging.basicConfig(level=logging.INFO)

def stalled_kernel():
    time.sleep(600)

watchdog = Watchdog(busy=lambda: True, progress=lambda: 7, not_ready=lambda: print("not ready", flush=True),
                    stall_seconds=0.4)
watchdog.start()
render = threading.Thread(target=stalled_kernel)
render.start()
render.join()
"""


@pytest.mark.timeout(60)
def test_a_real_process_ends_with_every_stack_in_its_log():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == STALLED == 70
    assert done.stdout == "not ready\n"
    assert "CRITICAL" in done.stderr and "in stalled_kernel" in done.stderr
    assert done.stderr.count("Thread 0x") + done.stderr.count("Current thread 0x") >= 3


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.DEBUG)
