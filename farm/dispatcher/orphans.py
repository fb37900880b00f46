"""Outputs that no result names: a worker died after it wrote them, and the job ended otherwise.

An output's name follows from its job, so nothing is searched for: of each job that is over without success, and of each
earlier generation of one that was retried, the names are asked for. What lies there is deleted only if its metadata say
that this very job and generation wrote it, the result of that generation is there and does not name it, and has been
there for the grace period, after which no worker that was stopped will write any more. Where the dispatcher's role may
not look, things stay as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice

from farm import keys, metrics
from farm.dispatcher.lead import Lead
from farm.errors import FarmError, InputNotFound, InvalidInput, Misconfigured, SpecUnreadable, Transient
from farm.ledger import Batches, JobRef
from farm.logs import job_context
from farm.schemas import InpaintJob, JobResult
from farm.shards import Accepted, Shelf
from farm.signing import split_line
from farm.states import JobState
from farm.storage import shown

log = logging.getLogger(__name__)

_LOOKERS = 16  # jobs looked at at once
_PART = 1000
_OVERLAP_SECONDS = 600.0  # between what one pass looks at and the next: the clocks of several machines are in this
_PAUSE_SECONDS = 60.0  # after a pass that failed


class Orphans:
    """Goes through the jobs that ended since it last did."""

    def __init__(self, batches: Batches, shelf: Shelf, lead: Lead, *, every_seconds: float, grace_seconds: float):
        self._batches, self._shelf, self._lead = batches, shelf, lead
        self._every, self._grace = every_seconds, grace_seconds
        self._not_before = 0.0

    def due(self) -> bool:
        """Whether it is time to, and this dispatcher's turn."""
        if not self._every or time.monotonic() < self._not_before:
            return False
        last = self._batches.collected_at()
        return (last is None or time.time() - last > self._every) and self._lead.held()

    def collect(self) -> int:
        """How many outputs were deleted. Raises Transient; then all of it is done again."""
        began, last, count = time.time(), self._batches.collected_at(), 0
        self._not_before = time.monotonic() + min(self._every, _PAUSE_SECONDS)
        since = _moment(0.0 if last is None else max(0.0, last - self._grace - _OVERLAP_SECONDS))
        suspects = self._suspects(since, until=_moment(began - self._grace))
        with ThreadPoolExecutor(_LOOKERS) as pool:
            while part := list(islice(suspects, _PART)):
                if not self._lead.held():
                    return count
                count += sum(pool.map(lambda ref: self._look(ref, _moment(began - self._grace)), part))
        self._batches.set_collected(began)
        if count:
            log.warning("%d outputs were deleted that no result names", count)
        return count

    # Who may have left something

    def _suspects(self, since: datetime, until: datetime) -> Iterator[JobRef]:
        """Jobs that ended in that time, but not in their first success; each at its newest generation."""
        for one in self._shelf.accepted():
            try:
                yield from self._of_single(one, since) if one.single else self._of_batch(one, since, until)
            except Transient:
                raise
            except FarmError as error:  # a damaged object is one batch's trouble
                log.warning("the outputs of batch %s of %s are left alone: %s", one.batch, one.tenant, error)

    def _of_single(self, one: Accepted, since: datetime) -> Iterator[JobRef]:
        newest = self._shelf.generations(one.tenant, one.batch) if one.retries else {}
        for ref in self._shelf.refs(one.tenant, one.batch, keys.SINGLE, newest):
            result = self._shelf.result(ref)
            if result is not None and result.finished_at > since and _suspect(result):
                yield ref

    def _of_batch(self, one: Accepted, since: datetime, until: datetime) -> Iterator[JobRef]:
        summary = self._shelf.summary(one.tenant, one.batch)
        if summary is None or summary.finished_at is None or not since < summary.finished_at <= until:
            return  # it is not over, or its time will come, or has
        if summary.counts.get(JobState.SUCCEEDED, 0) == summary.jobs and not summary.retries:
            return
        for shard, results in self._shelf.result_shards(one.tenant, one.batch):
            newest = {result.job_id: result.generation for result in results if _suspect(result)}
            if newest:
                refs = self._shelf.refs(one.tenant, one.batch, shard, newest)
                yield from (ref for ref in refs if ref.job_id in newest)

    # What they left

    def _look(self, ref: JobRef, until: datetime) -> int:
        with job_context(job=ref.job_id, batch=ref.batch_id, tenant=ref.tenant):
            return self._left_by(ref, until)

    def _left_by(self, ref: JobRef, until: datetime) -> int:
        try:
            job = InpaintJob.from_json(split_line(self._shelf.lines([ref])[0])[0])
            if job.tenant != ref.tenant or keys.job_id(ref.tenant, ref.batch_id, job.custom_id) != ref.job_id:
                return 0
            generations = (replace(ref, generation=generation) for generation in range(ref.generation + 1))
            return sum(self._collect(job, one, until) for one in generations)
        except (SpecUnreadable, InvalidInput, Misconfigured) as error:  # what cannot be read tells nothing for sure
            log.warning("the job's outputs are left alone: %s", error)
            return 0

    def _collect(self, job: InpaintJob, ref: JobRef, until: datetime) -> int:
        result = self._shelf.result(ref)
        if result is None or result.finished_at > until:
            return 0
        named, count = {output.uri for output in result.outputs}, 0
        for index in range(job.num_images_per_prompt):
            uri = keys.output(self._shelf.root, job, ref.batch_id, index, ref.generation)
            if uri not in named and self._written_by(ref, uri):
                self._shelf.store.delete(uri)
                metrics.orphans.inc()
                log.info("deleted %s, which the job wrote and its result does not name", shown(uri))
                count += 1
        return count

    def _written_by(self, ref: JobRef, uri: str) -> bool:
        try:
            told = self._shelf.store.head(uri).metadata
        except InputNotFound:
            return False
        return (told.get("job"), told.get("generation")) == (ref.job_id, str(ref.generation))


def _suspect(result: JobResult) -> bool:
    return result.status is not JobState.SUCCEEDED or result.generation > 0


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
