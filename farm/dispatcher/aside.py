"""Work beside the dispatcher's loop: what takes minutes must not keep the hints waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from farm.errors import FarmError

log = logging.getLogger(__name__)


class Aside:
    """One kind of work, in a thread of its own, never twice at once. What it raises is logged; it is begun again."""

    def __init__(self, name: str, work: Callable[[], object]):
        self._name, self._work = name, work
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """False while it is still at work."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        return True

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except FarmError as error:
            log.warning("%s while %s; it is begun once more: %s", error.code, self._name, error)
        except Exception:
            log.exception("a failure while %s; it is begun once more", self._name)
