"""Batches between store and index: opened when their footer is there, indexed shard by shard, closed at their end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from farm import keys
from farm.errors import FarmError, InputNotFound, QueueUnavailable
from farm.ledger import Batches, BatchRecord, Ledger
from farm.schemas import BatchSummary
from farm.shards import MAX_JOBS, Shelf
from farm.states import JobState

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 20.0  # at a batch that has been announced, or is not at its end
MAX_LIVE = 4 * MAX_JOBS  # rows of a tenant; beyond that the next shard waits
GIVE_UP_SECONDS = 24 * 3600.0  # a batch that was announced and never sealed: its client is not coming back

GO_THROUGH = 3  # times that a batch whose jobs do not add up is gone through; its footer may be wrong


class Acceptance:
    """Moves batches on. Raises QueueUnavailable; what was done before stays done."""

    def __init__(self, batches: Batches, ledger: Ledger, shelf: Shelf):
        self._batches, self._ledger, self._shelf = batches, ledger, shelf
        self._generations: dict[str, dict[str, int]] = {}
        self._first_seen: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._gone_through: Counter[str] = Counter()

    def look_at(self, tenant: str, batch: str) -> None:
        """A batch is due: find out what is wrong with it, or that it is over."""
        with self._by_itself(tenant, batch):
            self._look_at(tenant, batch)

    def _look_at(self, tenant: str, batch: str) -> None:
        record = self._batches.record(tenant, batch)
        if record is None:
            self._batches.close(tenant, batch)
        elif record.state == "accepting":
            self._look_for_work(tenant, batch)
        elif record.live <= 0 and record.next_shard >= record.shards:
            self._conclude(record)

    def index(self) -> int:
        """Index shards for as long as there is room; the number of jobs that were looked at."""
        indexed, live = 0, Counter(self._batches.live())
        for tenant, batch in self._batches.unindexed():
            if time.monotonic() < self._not_before.get(batch, 0.0):
                continue
            with self._by_itself(tenant, batch):
                while live[tenant] < MAX_LIVE and (count := self._index_shard(tenant, batch)):
                    live[tenant] += count
                    indexed += count
        return indexed

    def _index_shard(self, tenant: str, batch: str) -> int:
        record = self._batches.record(tenant, batch)
        if record is None or record.paused or record.next_shard >= record.shards:
            return 0
        refs = self._shelf.refs(tenant, batch, record.next_shard, self._later(tenant, batch))
        self._batches.index_shard(tenant, batch, record.next_shard, refs)
        return len(refs)

    @contextmanager
    def _by_itself(self, tenant: str, batch: str) -> Iterator[None]:
        """What is wrong with one batch is its own affair: it is tried again later, the others go on now."""
        try:
            yield
            self._not_before.pop(batch, None)
        except QueueUnavailable:
            raise
        except Exception as error:
            known = isinstance(error, FarmError)
            log.warning("batch %s of %s has to wait: %s", batch, tenant, error, exc_info=not known)
            self._not_before[batch] = time.monotonic() + LOOK_AGAIN_SECONDS

    def open(self, tenant: str, batch: str) -> bool:
        """Bring into the index what the store holds under this name; False if nothing complete is there."""
        self._generations.pop(batch, None)  # there may have been retries since
        footer = self._shelf.footer(tenant, batch)
        if footer is not None:
            canceled = self._shelf.canceled(tenant, batch)
            return self._batches.open(footer, canceled=canceled, look_again_in=LOOK_AGAIN_SECONDS) or True
        try:
            refs = self._shelf.refs(tenant, batch, keys.SINGLE, self._shelf.generations(tenant, batch))
        except InputNotFound:
            return False
        self._ledger.enqueue([ref for ref in refs if not self.has_result(tenant, batch, ref.job_id, ref.generation)])
        return True

    def _look_for_work(self, tenant: str, batch: str) -> None:
        """It was announced, and no word came after."""
        if self.open(tenant, batch):
            self._first_seen.pop(batch, None)
            record = self._batches.record(tenant, batch)
            if (
                record is not None and record.state == "accepting"
            ):  # a single job: its row, or its result, speaks for itself
                self._batches.close(tenant, batch)
        elif time.monotonic() - self._first_seen.setdefault(batch, time.monotonic()) > GIVE_UP_SECONDS:
            log.warning("batch %s of %s was announced and never completed", batch, tenant)
            self._batches.close(tenant, batch)

    def _conclude(self, record: BatchRecord) -> None:
        """No row of it is left: either every job is counted, or Redis lost some and they are gone through again."""
        footer = self._shelf.footer(record.tenant, record.batch_id)
        self._gone_through[record.batch_id] += 1
        lacking = sum(record.counts.values()) < record.jobs and footer is not None
        if lacking and self._gone_through[record.batch_id] < GO_THROUGH:
            log.warning("batch %s: %d of %d jobs are accounted for; going through it again",
                        record.batch_id, sum(record.counts.values()), record.jobs)  # fmt: skip
            self._batches.close(record.tenant, record.batch_id)
            self.open(record.tenant, record.batch_id)
            return
        summary = BatchSummary(
            batch_id=record.batch_id,
            tenant=record.tenant,
            jobs=record.jobs,
            counts={JobState(state): count for state, count in record.counts.items()},
            canceled=record.state == "canceled",
            retries=sum(1 for _ in self._shelf.retries(record.tenant, record.batch_id)),
        )
        uri = keys.summary(self._shelf.root, record.tenant, record.batch_id)
        self._shelf.store.put(uri, summary.to_json(), content_type="application/json", create_only=False)
        self._batches.close(record.tenant, record.batch_id)
        self._generations.pop(record.batch_id, None)
        del self._gone_through[record.batch_id]
        log.info("batch %s is done: %s", record.batch_id, dict(record.counts))

    def _later(self, tenant: str, batch: str) -> dict[str, int]:
        if batch not in self._generations:
            self._generations[batch] = self._shelf.generations(tenant, batch)
        return self._generations[batch]

    def has_result(self, tenant: str, batch: str, job: str, generation: int) -> bool:
        try:
            self._shelf.store.head(keys.result(self._shelf.root, tenant, batch, job, generation))
        except InputNotFound:
            return False
        return True
