"""The index made again from the store: after Redis lost everything, and now and then in case it lost something."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice

from farm import keys, metrics
from farm.dispatcher.acceptance import Acceptance
from farm.errors import InputNotFound, Transient
from farm.ledger import Batches
from farm.shards import Shelf

log = logging.getLogger(__name__)

_READERS = 16  # batches looked at at once: a long history is mostly single jobs that ended long ago
_PART = 1000


class Reconciler:
    """Walks the names of all specs once. Opening a batch again is harmless: who claims a job looks for its result."""

    def __init__(self, acceptance: Acceptance, batches: Batches, shelf: Shelf):
        self._acceptance, self._batches, self._shelf = acceptance, batches, shelf

    def lost(self) -> bool:
        """Whether Redis has begun anew since the index was last known to be whole."""
        return self._batches.epoch() is None

    def whole(self) -> int:
        """Open all that is not over; how many jobs. Ends with the index known to be whole, if Redis stayed the same."""
        walk, opened, accepted = self._batches.begin_walk(), 0, self._accepted()
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                while part := list(islice(accepted, _PART)):
                    opened += sum(pool.map(lambda one: self._open(*one), part))
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

    def _open(self, tenant: str, batch: str, retries: int, shards: int) -> int:
        try:
            if self._batches.record(tenant, batch) is not None or self._over(tenant, batch, retries, shards):
                return 0
            return self._acceptance.open(tenant, batch)
        except Transient:
            raise
        except Exception:  # a damaged object is one batch's trouble
            log.exception("batch %s of %s cannot be opened", batch, tenant)
            return 0

    def _accepted(self) -> Iterator[tuple[str, str, int, int]]:
        """(tenant, batch, how often jobs of it were retried, its shards) of all that was ever accepted."""
        root = keys.specs(self._shelf.root)
        parts = (info.uri.removeprefix(root).split("/") for info in self._shelf.store.list(root))
        for (tenant, batch), group in groupby((part for part in parts if len(part) == 3), key=lambda part: part[:2]):
            names = Counter(re.split(r"\d{5,}", name)[0] for _, _, name in group)
            yield tenant, batch, names["retry-"], names[""]

    def _over(self, tenant: str, batch: str, retries: int, shards: int) -> bool:
        """Summed up, and not retried since. Its results may be left to be rolled."""
        summary = self._shelf.summary(tenant, batch)
        if summary is None or summary.retries < retries:
            return False
        if summary.results is not None and shards and not self._rolled(tenant, batch, summary.retries, shards):
            self._batches.roll_later(tenant, batch, summary.retries)
        return True

    def _rolled(self, tenant: str, batch: str, retries: int, shards: int) -> bool:
        """They are rolled in their order: where the last is, all are."""
        try:
            self._shelf.store.head(keys.rolled(self._shelf.root, tenant, batch, retries, shards - 1))
        except InputNotFound:
            return False
        return True
