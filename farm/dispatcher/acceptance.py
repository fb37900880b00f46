"""Batches between store and index: opened when their footer is there, indexed shard by shard, closed at their end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

from farm import keys
from farm.config import Settings
from farm.dispatcher.ended import Ended
from farm.errors import FarmError, InputNotFound, InvalidInput, SpecUnreadable, Transient
from farm.ledger import Batches, BatchRecord, JobRef, Ledger
from farm.logs import job_context
from farm.schemas import BatchFooter, BatchSummary, JobResult
from farm.shards import READERS, Shelf
from farm.states import JobState
from farm.webhooks.outbox import note_batch

log = logging.getLogger(__name__)

GIVE_UP_LOOKS = 80  # at a batch that was announced and never sealed, a day of them: its client is not coming back
GO_THROUGH = 3  # times that a batch whose jobs do not add up is gone through; its footer may be wrong
AT_A_TIME_SECONDS = 0.1  # of reading the store, before it is the hints' turn again


class Acceptance:
    """Moves batches on. Raises QueueUnavailable, and StoreUnavailable when the store is away; what was done stays done.

    What is wrong with one batch is its own affair: it is tried again later, and the others go on.
    """

    def __init__(self, batches: Batches, ledger: Ledger, shelf: Shelf, settings: Settings):
        self._batches, self._ledger, self._shelf = batches, ledger, shelf
        self._look_again_in, self._max_live = settings.batch_look_seconds, settings.max_indexed
        self._not_before: dict[str, float] = {}
        self._gone_through: Counter[str] = Counter()
        self._reopened: dict[tuple[str, str, str], Ended | None] = {}  # (tenant, batch, model) → what has ended of it

    def look_at(self, tenant: str, batch: str) -> None:
        """A batch is due: find out what is wrong with it, or that it is over."""
        with self._by_itself(tenant, batch):
            record = self._batches.record(tenant, batch)
            if record is None:
                self._batches.close(tenant, batch)
            elif record.state == "accepting":
                self._look_for_work(record)
            elif record.live <= 0 and record.next_shard >= record.shards:
                self._conclude(record)

    def index(self) -> int:
        """Index shards for as long as there is room, but not for long; the number of jobs that were looked at."""
        began, indexed, live = time.monotonic(), 0, Counter(self._batches.live())
        later: dict[str, dict[str, int]] = {}
        for tenant, batch, model in self._batches.unindexed():
            if live[tenant, model] >= self._max_live or began < self._not_before.get(batch, 0.0):
                continue
            if (tenant, batch, model) in self._reopened:
                continue
            with self._by_itself(tenant, batch):
                if batch not in later:
                    later[batch] = self._shelf.generations(tenant, batch)
                while live[tenant, model] < self._max_live and (
                    count := self._index_shard(tenant, batch, later[batch])
                ):
                    live[tenant, model] += count
                    indexed += count
                    if time.monotonic() - began > AT_A_TIME_SECONDS:
                        return indexed
        return indexed

    def open(self, tenant: str, batch: str) -> int:
        """Bring into the index what the store holds under this name and has no end: jobs, or 0."""
        footer = self._shelf.footer(tenant, batch)
        if footer is not None:
            return self._open_batch(footer)
        try:
            refs = self._shelf.refs(tenant, batch, keys.SINGLE, self._shelf.generations(tenant, batch))
        except InputNotFound:
            return 0
        return self._ledger.enqueue([ref for ref in refs if not self.has_result(*_place(ref))])

    def _open_batch(self, footer: BatchFooter) -> int:
        tenant, batch = footer.tenant, footer.batch_id
        retries = self._shelf.retry_count(tenant, batch)
        opened = self._batches.reopen(footer, retries=retries, look_again_in=self._look_again_in)
        if self._shelf.canceled(tenant, batch):  # looked at last, so that no mark is missed
            self._batches.cancel(batch)
        return footer.jobs if opened else 0

    def has_result(self, tenant: str, batch: str, job: str, generation: int) -> bool:
        return self._shelf.store.exists(keys.result(self._shelf.root, tenant, batch, job, generation))

    def _index_shard(self, tenant: str, batch: str, later: dict[str, int]) -> int:
        record = self._batches.record(tenant, batch)
        if record is None or record.paused or record.next_shard >= record.shards:
            return 0
        if record.reopened:
            self._reopened[tenant, batch, record.model] = None
            return 0
        refs = self._shelf.refs(tenant, batch, record.next_shard, later)
        self._batches.index_shard(tenant, batch, record.next_shard, refs)
        return len(refs)

    # After the index was lost

    @property
    def reopened(self) -> bool:
        """Whether batches wait for `recover`."""
        return bool(self._reopened)

    def recover(self) -> None:
        """Index, as far as there is room, batches of which jobs have ended that nobody counts any more.

        One LIST tells which; they are counted and get no row, so that nobody claims them again. For a thread beside
        the loop: the results of what has ended are read, a shard's at a time.
        """
        with ThreadPoolExecutor(READERS) as pool:
            for tenant, batch, model in list(self._reopened):
                with self._by_itself(tenant, batch):
                    self._recover(tenant, batch, model, pool)
                if batch in self._not_before:  # damaged: tried again later, from the beginning
                    self._reopened.pop((tenant, batch, model), None)

    def _recover(self, tenant: str, batch: str, model: str, pool: Executor) -> None:
        ended = self._reopened[tenant, batch, model]
        if ended is None:
            prefix = keys.results(self._shelf.root, tenant, batch)
            ended = Ended(info.uri.removeprefix(prefix) for info in self._shelf.store.list(prefix))
            self._reopened[tenant, batch, model] = ended
        later = self._shelf.generations(tenant, batch)
        while Counter(self._batches.live())[tenant, model] < self._max_live:
            record = self._batches.record(tenant, batch)
            if record is None or not record.reopened or record.paused or record.next_shard >= record.shards:
                del self._reopened[tenant, batch, model]
                return
            refs = self._shelf.refs(tenant, batch, record.next_shard, later)
            over = [ref for ref in refs if ended.has(ref.job_id, ref.generation)]
            lines = self._shelf.result_lines(over, pool)
            states = {ref.job_id: _state(line) for ref, line in zip(over, lines, strict=True) if line is not None}
            left = [ref for ref in refs if ref.job_id not in states]
            self._batches.index_shard(tenant, batch, record.next_shard, left, ended=Counter(states.values()))

    def _look_for_work(self, announced: BatchRecord) -> None:
        """It was announced, and no word came after."""
        tenant, batch = announced.tenant, announced.batch_id
        self.open(tenant, batch)
        record = self._batches.record(tenant, batch)
        if record is None or record.state != "accepting":
            return
        if self._shelf.has_single(tenant, batch):  # its row, or its result, speaks for it
            self._batches.close(tenant, batch)
        elif announced.looks > GIVE_UP_LOOKS:
            log.warning("the batch was announced and never completed")
            self._batches.close(tenant, batch)

    def _conclude(self, record: BatchRecord) -> None:
        """No row of it is left: either every job is counted, or Redis lost some and they are gone through again."""
        tenant, batch, ended = record.tenant, record.batch_id, sum(record.counts.values())
        retries = self._shelf.retry_count(tenant, batch)
        self._gone_through[batch] += 1
        if ended != record.jobs or retries != record.retries:
            if self._gone_through[batch] <= GO_THROUGH:
                log.warning("%d of %d jobs are accounted for; once more", ended, record.jobs)
                self._batches.close(tenant, batch, retries=record.retries, again=True)
                return
            log.error("%d of %d jobs are accounted for; given up", ended, record.jobs)
        done = ended == record.jobs
        summary = BatchSummary(
            batch_id=batch,
            tenant=tenant,
            jobs=record.jobs,
            counts={JobState(state): count for state, count in record.counts.items()},
            canceled=record.state == "canceled",
            retries=retries,
            finished_at=datetime.now(UTC),
            results=keys.rolled_prefix(self._shelf.root, tenant, batch, retries) if done else None,
        )
        footer = self._shelf.footer(tenant, batch)
        if footer is not None and footer.webhook_url is not None:
            note_batch(self._shelf.store, self._shelf.root, tenant, batch, retries)
        uri = keys.summary(self._shelf.root, tenant, batch)
        self._shelf.store.put(uri, summary.to_json(), content_type="application/json", create_only=False)
        if done and record.shards:
            self._batches.roll_later(tenant, batch, retries)
        if self._batches.close(tenant, batch, retries=record.retries):
            del self._gone_through[batch]
            log.info("the batch is done: %s", dict(record.counts))

    @contextmanager
    def _by_itself(self, tenant: str, batch: str) -> Iterator[None]:
        with job_context(batch=batch, tenant=tenant):
            try:
                yield
                self._not_before.pop(batch, None)
            except Exception as error:
                if isinstance(error, Transient) and not isinstance(error, SpecUnreadable):
                    raise
                known = isinstance(error, FarmError)
                log.warning("the batch has to wait: %s", error, exc_info=not known)
                self._not_before[batch] = time.monotonic() + self._look_again_in


def _state(line: bytes) -> str:
    """How a job ended. A result that cannot be read is one all the same."""
    try:
        return JobResult.from_json(line).status.value
    except InvalidInput:
        return JobState.FAILED.value


def _place(ref: JobRef) -> tuple[str, str, str, int]:
    return ref.tenant, ref.batch_id, ref.job_id, ref.generation
