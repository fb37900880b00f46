"""How long the device works, and for whom."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

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
    """Times stretches of device work to the device's last kernel, and shares the seconds out by rows.

    Of `networks` every forward is timed by itself, too, and `computed` told its seconds: within a stretch there is
    noise to be drawn and batches to be put together as well.
    """

    def __init__(
        self,
        device: torch.device,
        worked: Callable[[str, Work, float], None],
        computed: Callable[[float], None],
        networks: Iterable[nn.Module],
    ):
        self._device, self._worked, self._computed = device, worked, computed
        self._begun: list[float] = []
        for network in networks:
            self.also(network)

    def also(self, network: nn.Module) -> None:
        """Time this one's forwards, too; where one calls another, the outer one counts."""
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end, always_call=True)

    def _begin(self, *_: object) -> None:
        self._begun.append(time.monotonic())

    def _end(self, *_: object) -> None:
        begin = self._begun.pop()
        if not self._begun:
            self.synchronize()
            self._computed(time.monotonic() - begin)

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
