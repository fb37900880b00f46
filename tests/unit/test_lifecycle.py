"""What a worker watches itself for."""

import signal
import threading
import time

import psutil
import pytest

from worker.lifecycle import watch_memory


@pytest.fixture
def told(monkeypatch):
    """SIGTERMs that this process was sent."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(time.monotonic()))
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_holds_too_much_tells_itself_to_end_once(told, caplog):
    watch_memory(1, threading.Event(), look_seconds=0.001)
    assert len(told) == 1 and "FARM_RECYCLE_BYTES" in caplog.text


def test_one_that_does_not_is_left_alone_until_it_ends(told, monkeypatch):
    looks = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            looks.append(timeout)
            return len(looks) > 5

    watch_memory(psutil.virtual_memory().total, Stop(), look_seconds=0.5)
    assert looks == [0.5] * 6 and not told
