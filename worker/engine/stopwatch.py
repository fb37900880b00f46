"""How long the device works, and for whom."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from worker.engine.submission import Ticket


class Work(NamedTuple):
    """What went through the device at once: `rows` of `width` × `height` px of the picture."""

    width: int
    height: int
    rows: int

    @property
    def volume(self) -> int:
        """Pixels."""
        return self.width * self.height * self.rows


class Stopwatch:
    """Times stretches of device work to the device's last kernel, and shares the seconds out by rows."""

    def __init__(self, device: torch.device, worked: Callable[[str, Work, float], None]):
        self._device, self._worked = device, worked

    def synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def of(self, stage: str, tickets: Sequence[Ticket], work: Work) -> Iterator[None]:
        """Within, the device works for `tickets`. What fails is work, too."""
        begin = time.monotonic()
        try:
            yield
            self.synchronize()
        finally:
            seconds = time.monotonic() - begin
            total = sum(ticket.rows for ticket in tickets)
            for ticket in tickets:
                ticket.spend(stage, seconds * ticket.rows / total)
            self._worked(stage, work, seconds)
