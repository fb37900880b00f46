"""`BatchHandle`: an accepted batch, watched, paused, canceled, retried; its results streamed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice

from farm import keys
from farm.errors import InvalidParameter, ObjectExists, QueueUnavailable, ResultTimeout
from farm.ledger import JobRef, Ledger
from farm.schemas import BatchFooter, BatchSummary, InpaintJob, JobResult
from farm.shards import Shelf
from farm.signing import split_line
from farm.states import JobState
from producer.following import Following, skipping
from producer.handle import JobHandle
from producer.index import Index
from producer.results import READERS, read_results


class BatchHandle:
    """What `Client.submit_batch` returns; `Client.batch(id)` opens it again."""

    def __init__(self, footer: BatchFooter, shelf: Shelf, index: Index, *, look_again_in: float):
        self.id, self.tenant, self.jobs = footer.batch_id, footer.tenant, footer.jobs
        self._footer, self._shelf, self._index = footer, shelf, index
        self._ledger, self._batches = index.ledger, index.batches
        self._look_again_in = look_again_in

    @property
    def webhook_url(self) -> str | None:
        """Who is told when it is over."""
        return self._footer.webhook_url

    def __repr__(self) -> str:
        return f"BatchHandle(id={self.id!r}, jobs={self.jobs})"

    def status(self) -> BatchSummary:
        """How far it is. Raises QueueUnavailable while the index is away or is being made again."""
        record = self._batches.record(self.tenant, self.id)
        if record is None or record.state == "accepting":
            summary = self._shelf.summary(self.tenant, self.id)
            if summary is None or summary.retries < self._shelf.retry_count(self.tenant, self.id):
                raise QueueUnavailable(f"The farm is making its index again; ask for batch {self.id} in a moment.")
            return summary
        counts = {JobState(state): count for state, count in record.counts.items()}
        if left := self.jobs - sum(counts.values()):
            counts[JobState.QUEUED] = left
        return BatchSummary(
            batch_id=self.id, tenant=self.tenant, jobs=self.jobs, counts=counts, paused=record.paused,
            canceled=record.state == "canceled",
        )  # fmt: skip

    def wait(
        self, timeout: float | None = None, *, on_progress: Callable[[BatchSummary], object] = lambda _: None
    ) -> BatchSummary:
        """Until every job has ended, at most `timeout` seconds, else ResultTimeout. An index away is waited for."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while True:
            with suppress(QueueUnavailable):
                summary = self.status()
                on_progress(summary)
                if summary.done:
                    return summary
            if end is not None and time.monotonic() >= end:
                raise ResultTimeout(f"Batch {self.id} has not ended after {timeout:g} s.")
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def results(self) -> Iterator[JobResult]:
        """The results there are now, in the order of the jobs; those of retried jobs are the newest."""
        return self._shelf.results(self.tenant, self.id)

    def follow(
        self, *, ordered: bool = True, skip: int = 0, timeout: float | None = None,
        on_result: Callable[[JobResult], object] = lambda _: None, on_wait: Callable[[], object] = lambda: None,
    ) -> Iterator[JobResult]:  # fmt: skip
        """Every job's result, each as soon as it is there, in the order of the jobs or as they end; memory is bounded.

        The first `skip` jobs are left out. `on_result` is told of each when it is read, which may be before its turn;
        `on_wait` is called before each pause. Raises ResultTimeout when none has ended for `timeout` seconds.
        """
        if self._summed_up(self._shelf.retry_count(self.tenant, self.id)) is not None:  # it may be read by the shard
            return self._told(skip, on_result)
        following = Following(self._index, self._shelf)
        return following.results(
            skipping(self.refs(), skip), ordered=ordered, timeout=timeout, on_result=on_result, on_wait=on_wait
        )

    def _summed_up(self, retries: int) -> BatchSummary | None:
        """How every job had ended after so many retries; None where that is not written down."""
        summary = self._shelf.summary(self.tenant, self.id)
        return summary if summary is not None and summary.done and summary.retries == retries else None

    def _told(self, skip: int, on_result: Callable[[JobResult], object]) -> Iterator[JobResult]:
        for result in islice(self.results(), skip, None):
            on_result(result)
            yield result

    def job(self, custom_id: str) -> JobHandle:
        """One of its jobs. Raises InvalidParameter if there is none of this name. Reads the batch up to it."""
        wanted = keys.job_id(self.tenant, self.id, custom_id)
        ref = next((ref for refs in self.refs() for ref in refs if ref.job_id == wanted), None)
        if ref is None:
            raise InvalidParameter("custom_id", f"{custom_id!r} is no job of batch {self.id}")
        return opened(self._shelf, self._ledger, ref)

    def refs(self) -> Iterator[list[JobRef]]:
        """Where its jobs lie, a shard at a time, in their order; each at its newest generation."""
        later = self._shelf.generations(self.tenant, self.id)
        for shard in range(self._footer.shards):
            yield self._shelf.refs(self.tenant, self.id, shard, later)

    # What can be done to it

    def pause(self) -> None:
        """Begin no more of its jobs. Lasts until `resume`, or until Redis loses its data."""
        self._known(self._batches.pause(self.tenant, self.id, paused=True))

    def resume(self) -> None:
        self._known(self._batches.pause(self.tenant, self.id, paused=False))

    def cancel(self) -> bool:
        """Render nothing more of it: every job that has not ended ends `canceled`, running ones at their next step.

        False if there is nothing to cancel: every job has ended, and may be retried later as before.
        """
        with suppress(QueueUnavailable):
            if self.status().done:
                return False
        body = json.dumps({"canceled_at": datetime.now(UTC).isoformat()}).encode()
        uri = keys.batch_canceled(self._shelf.root, self.tenant, self.id)
        with suppress(ObjectExists):
            self._shelf.store.put(uri, body, content_type="application/json", create_only=True)
        self._batches.pause(self.tenant, self.id, paused=False)
        self._batches.cancel(self.id)
        return True

    def retry_failed(self, *, codes: frozenset[str] | None = None) -> int:
        """Give every failed job (with one of `codes`) another generation; how many. The old results stay."""
        refs: list[JobRef] = []
        with ThreadPoolExecutor(READERS) as pool:
            for group in self.refs():
                results = zip(group, read_results(self._shelf, group, pool), strict=True)
                refs += [ref for ref, result in results if result is not None and _failed(result, codes)]
        return self.retry(refs)

    def retry(self, refs: Sequence[JobRef]) -> int:
        """Give jobs of this batch that failed another generation: first in the store, then in the index; how many.

        Those that have a later generation than these already are left alone.
        """
        if not refs:
            return 0
        self._batches.announce(self.tenant, self.id, look_again_in=self._look_again_in)
        again = write_retry(self._shelf, self.tenant, self.id, refs)
        if again and self._batches.uncount(self.tenant, self.id, JobState.FAILED, len(again)):
            self._ledger.enqueue(again, counted=False)
        else:
            self.open_again(again)
        return len(again)

    def open_again(self, again: Sequence[JobRef] = ()) -> None:
        """Tell an index that may know no more of this batch what is left of it: `again`, the jobs of its last retry.

        The summary before that says how all others ended. Where there is none, whoever indexes the batch goes through
        all of it, and finds `again`, too.
        """
        retries = self._shelf.retry_count(self.tenant, self.id)
        summary = self._summed_up(retries - bool(again))
        if summary is not None and not again:  # nothing is left: what announced it is taken back
            self._batches.close(self.tenant, self.id, retries=retries)
            return
        if summary is None:
            self._batches.reopen(self._footer, retries=retries, look_again_in=self._look_again_in)
        else:
            counts = Counter({state.value: count for state, count in summary.counts.items()})
            counts[JobState.FAILED.value] -= len(again)
            self._batches.open(
                self._footer, next_shard=self._footer.shards, retries=retries, counts=counts,
                look_again_in=self._look_again_in,
            )  # fmt: skip
        if self._shelf.canceled(self.tenant, self.id):
            self._batches.cancel(self.id)
        if summary is not None:
            self._ledger.enqueue(again, counted=False)

    def _known(self, known: bool) -> None:
        if known:
            return
        if (summary := self._shelf.summary(self.tenant, self.id)) is not None and summary.done:
            raise InvalidParameter("batch_id", f"{self.id} is over: all its {self.jobs:,} jobs have ended")
        raise QueueUnavailable(f"The farm is making its index again; ask for batch {self.id} in a moment.")


def opened(shelf: Shelf, ledger: Ledger, ref: JobRef) -> JobHandle:
    """The handle of an accepted job, its spec read from the store. Raises SpecUnreadable."""
    line, _ = split_line(shelf.lines([ref])[0])
    return JobHandle(ref, InpaintJob.from_json(line), shelf, ledger)


def write_retry(shelf: Shelf, tenant: str, batch: str, refs: Sequence[JobRef]) -> list[JobRef]:
    """Record the next generation of these jobs, unless they have one; the jobs as they are then."""
    newest = shelf.generations(tenant, batch)
    again = [replace(ref, generation=ref.generation + 1) for ref in refs if newest.get(ref.job_id, 0) == ref.generation]
    if again:
        body = b"".join(json.dumps(asdict(ref)).encode() + b"\n" for ref in again)
        uri = keys.retry(shelf.root, tenant, batch, shelf.retry_count(tenant, batch))
        shelf.store.put(uri, body, content_type="application/x-ndjson", create_only=True)
    return again


def _failed(result: JobResult, codes: frozenset[str] | None) -> bool:
    code = result.error.code if result.error else ""
    return result.status is JobState.FAILED and (codes is None or code in codes)
