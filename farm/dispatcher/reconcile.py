"""The index made again from the store: after Redis lost everything, and now and then in case it lost something."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from farm import keys, metrics
from farm.dispatcher.acceptance import Acceptance
from farm.errors import InputNotFound
from farm.ledger import Batches
from farm.shards import Shelf

log = logging.getLogger(__name__)


class Reconciler:
    """Walks the names of all specs once. Opening a batch again is harmless: who claims a job looks for its result."""

    def __init__(self, acceptance: Acceptance, batches: Batches, shelf: Shelf):
        self._acceptance, self._batches, self._shelf = acceptance, batches, shelf

    def lost(self) -> bool:
        """Whether Redis has begun anew since the index was last known to be whole."""
        return self._batches.epoch() is None

    def whole(self) -> int:
        """Open every batch that is not over; how many were opened. Ends with the index known to be whole."""
        opened = 0
        for tenant, batch in self._accepted():
            if not self._over(tenant, batch) and self._batches.record(tenant, batch) is None:
                opened += self._acceptance.open(tenant, batch)
        self._batches.begin_epoch()
        metrics.reconciled.inc(opened)
        if opened:
            log.warning("the index was made again from the store: %d batches and single jobs", opened)
        return opened

    def _accepted(self) -> Iterator[tuple[str, str]]:
        root, before = keys.specs(self._shelf.root), None
        for info in self._shelf.store.list(root):
            parts = info.uri.removeprefix(root).split("/")
            if len(parts) == 3 and (pair := (parts[0], parts[1])) != before:
                before = pair
                yield pair

    def _over(self, tenant: str, batch: str) -> bool:
        """Summed up, and not retried since: a retry takes the summary away."""
        try:
            self._shelf.store.head(keys.summary(self._shelf.root, tenant, batch))
        except InputNotFound:
            return False
        return True
