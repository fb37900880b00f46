"""The control plane: sees that every job that is due gets a hint.

A hint may be lost, with the worker that held it or before it was sent, and a worker may go silent with a job in its
hands. Both kinds of job come up in the ledger's `due` set and are hinted again here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

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
        due = self._ledger.take_due(limit=LIMIT, look_again_in=LOOK_AGAIN_SECONDS)
        for ref in due:
            self._hints.publish(ref)  # needless for a job that merely waits behind others, and harmless
        return len(due)

    def run(self, stop: threading.Event, *, every_seconds: float, on_back: Callable[[], object] = lambda: None) -> None:
        """Rounds until `stop` is set. A Redis that is away is waited for, and `on_back` called when it is back."""
        away = False
        while not stop.wait(every_seconds):
            try:
                published = self.round()
            except Transient as error:
                away = True
                log.warning("%s: %s", error.code, error)
                continue
            if away:
                away = False
                on_back()
            if published:
                log.info("hinted %d due jobs again", published)
