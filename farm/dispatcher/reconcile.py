"""The index made again from the store: after Redis lost everything, and now and then in case it lost something."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from farm import keys, metrics
from farm.dispatcher.acceptance import Acceptance
from farm.errors import Transient
from farm.ledger import Batches
from farm.logs import job_context
from farm.shards import Accepted, Shelf

log = logging.getLogger(__name__)

_READERS = 16  # batches looked at at once: a long history is mostly single jobs that ended long ago
_PART = 1000


class Reconciler:
    """Walks the names of all specs once. Opening a batch again is harmless: what has ended of it is found and counted,
    and who claims a job looks for its result."""

    def __init__(self, acceptance: Acceptance, batches: Batches, shelf: Shelf):
        self._acceptance, self._batches, self._shelf = acceptance, batches, shelf

    def lost(self) -> bool:
        """Whether Redis has begun anew since the index was last known to be whole."""
        return self._batches.epoch() is None

    def whole(self) -> int:
        """Open all that is not over; how many jobs. Ends with the index known to be whole, if Redis stayed the same."""
        walk, opened, accepted = self._batches.begin_walk(), 0, self._shelf.accepted()
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                while part := list(islice(accepted, _PART)):
                    opened += sum(pool.map(self._open, part))
        except BaseException:
            self._batches.give_up_walk(walk)
            raise
        self._batches.end_walk(walk)
        metrics.reconciled.inc(opened)
        if opened:
            log.warning("the index was made again from the store: %d jobs", opened)
        return opened

    def collect_states(self) -> int:
        """Remove the saved states of jobs that have ended; how many."""
        root, removed = keys.states(self._shelf.root), 0
        for info in self._shelf.store.list(root):
            tenant, _, rest = info.uri.removeprefix(root).partition("/")
            batch, _, name = rest.partition("/")
            job, _, generation = name.removesuffix(".safetensors").partition(".")
            if generation.isdigit() and self._acceptance.has_result(tenant, batch, job, int(generation)):
                self._shelf.store.delete(info.uri)
                removed += 1
        return removed

    def _open(self, one: Accepted) -> int:
        with job_context(batch=one.batch, tenant=one.tenant):
            try:
                if self._batches.record(one.tenant, one.batch) is not None or self._over(one):
                    return 0
                return self._acceptance.open(one.tenant, one.batch)
            except Transient:
                raise
            except Exception:  # a damaged object is one batch's trouble
                log.exception("the batch cannot be opened")
                return 0

    def _over(self, one: Accepted) -> bool:
        """Summed up, and not retried since. Its results may be left to be rolled."""
        summary = self._shelf.summary(one.tenant, one.batch)
        if summary is None or summary.retries < one.retries:
            return False
        if summary.results is not None and one.shards and not self._rolled(one, summary.retries):
            self._batches.roll_later(one.tenant, one.batch, summary.retries)
        return True

    def _rolled(self, one: Accepted, retries: int) -> bool:
        """They are rolled in their order: where the last is, all are."""
        return self._shelf.store.exists(keys.rolled(self._shelf.root, one.tenant, one.batch, retries, one.shards - 1))
