"""The control plane: sees that every job that is due gets a hint.

A hint may be lost, with the worker that held it or before it was sent, and a worker may go silent with a job in its
hands. Both kinds of job come up in the ledger's `due` set and are hinted again here.
"""

from __future__ import annotations

import logging
import threading

from farm.errors import Transient
from farm.ledger import Ledger
from farm.queue import Hints

log = logging.getLogger(__name__)

LIMIT = 1000  # jobs looked at in one round
LOOK_AGAIN_SECONDS = 30.0


class Dispatcher:
    """Hints again what is due. Any number may run: each job is handed to one of them only."""

    def __init__(self, ledger: Ledger, hints: Hints):
        self._ledger, self._hints = ledger, hints

    def round(self) -> int:
        """One round; the number of hints published."""
        published = 0
        depths: dict[str, int] = {}
        for due in self._ledger.take_due(limit=LIMIT, look_again_in=LOOK_AGAIN_SECONDS):
            model = due.ref.model
            depth = depths[model] if model in depths else depths.setdefault(model, self._ledger.depth(model))
            # A job that is merely waiting behind others in a full queue has its hint there still.
            if due.retry or depth == 0:
                self._hints.publish(due.ref)
                published += 1
        return published

    def run(self, stop: threading.Event, *, every_seconds: float) -> None:
        """Rounds until `stop` is set; a Redis that is away is waited for."""
        while not stop.wait(every_seconds):
            try:
                if published := self.round():
                    log.info("hinted %d due jobs again", published)
            except Transient as error:
                log.warning("%s: %s", error.code, error)
