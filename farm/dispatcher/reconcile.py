"""The index made again from the store: after Redis lost everything, and now and then in case it lost something."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import groupby

from farm import keys, metrics
from farm.dispatcher.acceptance import Acceptance
from farm.errors import InputNotFound, Transient
from farm.ledger import Batches
from farm.schemas import BatchSummary
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
        for tenant, batch, retries in self._accepted():
            try:
                if not self._over(tenant, batch, retries) and self._batches.record(tenant, batch) is None:
                    opened += self._acceptance.open(tenant, batch)
            except Transient:
                raise
            except Exception:  # a damaged object is one batch's trouble
                log.exception("batch %s of %s cannot be opened", batch, tenant)
        self._batches.begin_epoch()
        metrics.reconciled.inc(opened)
        if opened:
            log.warning("the index was made again from the store: %d batches and single jobs", opened)
        return opened

    def _accepted(self) -> Iterator[tuple[str, str, int]]:
        """(tenant, batch, how often jobs of it were retried) of all that was ever accepted."""
        root = keys.specs(self._shelf.root)
        parts = (info.uri.removeprefix(root).split("/") for info in self._shelf.store.list(root))
        for (tenant, batch), names in groupby((part for part in parts if len(part) == 3), key=lambda part: part[:2]):
            yield tenant, batch, sum(name.startswith("retry-") for _, _, name in names)

    def _over(self, tenant: str, batch: str, retries: int) -> bool:
        """Summed up, and not retried since."""
        try:
            uri = keys.summary(self._shelf.root, tenant, batch)
            summary = BatchSummary.from_json(self._shelf.store.get(uri, max_bytes=2**20).data)
        except InputNotFound:
            return False
        return summary.retries >= retries

    def collect_states(self) -> int:
        """Remove the saved states of jobs that have ended; how many."""
        root, removed = keys.states(self._shelf.root), 0
        for info in self._shelf.store.list(root):
            tenant, batch, name = info.uri.removeprefix(root).split("/")
            job, generation, _ = name.split(".")
            if self._acceptance.has_result(tenant, batch, job, int(generation)):
                self._shelf.store.delete(info.uri)
                removed += 1
        return removed
