"""Which of several dispatchers does what only one need do: fill gauges, roll results, collect orphans."""

from __future__ import annotations

import secrets

from farm.ledger import Window

_SECONDS = 10.0  # of silence, after which another leads


class Lead:
    """One dispatcher's claim to lead. Nothing is wrong if two lead for a moment; it is only done twice."""

    def __init__(self, window: Window):
        self._window, self._name = window, secrets.token_hex(8)

    def held(self) -> bool:
        """Whether this one leads now, for ten seconds more. Raises QueueUnavailable."""
        return self._window.lead(self._name, seconds=_SECONDS)
