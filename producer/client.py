"""`Client`: accepts jobs into the store and tells the farm.

Accepted means: the create-once object is written (for a batch: its footer). Where they should be rendered is
announced before, so that what was accepted is found although its producer died right after. When `submit` raises,
submit the same again under the same idempotency key: what was done is not done twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path

from farm import keys, tracing
from farm.config import Settings, load_settings
from farm.errors import (
    DeadlineInPast,
    IdempotencyConflict,
    InputNotFound,
    InvalidParameter,
    ObjectExists,
    QueueUnavailable,
)
from farm.ledger import JobRef, connect
from farm.schemas import BatchFooter, InpaintJob, JobResult, spec_line
from farm.shards import MAX_BYTES, Shard, Shelf, shards_of, sized
from farm.signing import split_line
from farm.storage import ObjectStore
from farm.tenants import Tenants
from producer.batch import BatchHandle, opened, write_retry
from producer.following import Following
from producer.handle import JobHandle
from producer.index import Index
from producer.manifest import Manifest

log = logging.getLogger(__name__)

_UPLOADS = 4  # shards on their way at once


class Client:
    """A connection to one farm: its Redis and its store, from `settings` or the FARM_* environment."""

    def __init__(
        self, settings: Settings | None = None, *, store: ObjectStore | None = None, index: Index | None = None
    ):
        """`store` and `index`: others than those that the settings name."""
        self.settings = settings or load_settings()
        self.store = store or self.settings.open_store()
        self.index = index or Index(connect(self.settings.redis_url))
        self._ledger, self._batches = self.index.ledger, self.index.batches
        self._shelf = Shelf(self.store, self.settings.store)
        self._look_again_in = self.settings.batch_look_seconds
        self.tenants = Tenants.load(self.settings)
        tracing.begin("inpaint-farm-client")

    # One job

    def submit(self, job: InpaintJob, *, idempotency_key: str | None = None) -> JobHandle:
        """Accept one job and return its handle.

        The same `idempotency_key` with the same job gives the same handle and renders once; with another job it
        raises IdempotencyConflict. Raises InvalidInput for a job that cannot be right; QuotaExceeded, FarmFull,
        StoreUnavailable or QueueUnavailable when the farm takes nothing now ("try later").
        """
        began = time.time()
        if not job.custom_id:
            job = job.model_copy(update={"custom_id": job.content_name()})
        batch = keys.batch_id(job.tenant, idempotency_key, single=True)
        line = self._line(job, batch)
        uri = keys.spec_shard(self.settings.store, job.tenant, batch, keys.SINGLE)
        if _late(job) and (idempotency_key is None or not self._stored(uri, line)):
            raise DeadlineInPast(f"The deadline {job.deadline} has passed already; give a later one.")
        self._announce(job.tenant, batch)
        self._create(uri, line, "job")
        ref = JobRef(
            keys.job_id(job.tenant, batch, job.custom_id), job.tenant, batch, job.model, keys.SINGLE, 0, len(line),
            priority=job.priority,
        )  # fmt: skip
        try:
            self._ledger.enqueue([ref])
        except QueueUnavailable as error:  # it is accepted, and announced
            log.warning("%s: job %s waits until somebody looks", error.code, ref.job_id)
        tracing.span("submit", ref, began, time.time())
        return JobHandle(ref, job, self._shelf, self._ledger)

    def job(self, address: str, *, tenant: str = "default") -> JobHandle:
        """A job that was submitted before, by its handle's `address`; the batch id of one that was submitted alone
        will do.

        Raises InvalidParameter if there is none.
        """
        batch, _, custom_id = address.partition("/")
        try:
            refs = self._shelf.refs(tenant, batch, keys.SINGLE, self._shelf.generations(tenant, batch))
        except InputNotFound:
            if not custom_id:
                raise InvalidParameter("address", f"{address!r} is no job of tenant {tenant!r} in this farm") from None
            return self.batch(batch, tenant=tenant).job(custom_id)
        if custom_id and refs[0].job_id != keys.job_id(tenant, batch, custom_id):
            raise InvalidParameter("address", f"{batch} is a job, but not {custom_id!r}")
        return opened(self._shelf, self._ledger, refs[0])

    # Batches

    def submit_batch(
        self, jobs: Iterable[InpaintJob] | str | Path, *, tenant: str = "default", idempotency_key: str | None = None,
        webhook_url: str | None = None,
    ) -> BatchHandle:  # fmt: skip
        """Accept any number of jobs of one tenant at once: all of them, or, when this raises, none.

        `jobs` (or the address of a manifest) is read once and never held as a whole. Jobs without a custom_id are
        named after their place. The same `idempotency_key` with the same jobs gives the same batch, and goes on with
        one that was cut off; with other jobs it raises IdempotencyConflict. Raises as `submit` does, and
        InvalidParameter for a custom_id that comes twice or a job of another tenant. `webhook_url` is called when all
        jobs have ended; UrlNotAllowed if the farm does not call it.
        """
        if webhook_url is not None:
            self.tenants.check_webhook(webhook_url, tenant=tenant)
        if isinstance(jobs, (str, Path)):
            jobs = Manifest(jobs, settings=self.settings, store=self.store)
        batch, began = keys.batch_id(tenant, idempotency_key, single=False), time.time()
        self._announce(tenant, batch)
        total = shards = priority = 0
        model = ""
        for shard, first in self._uploaded(tenant, batch, jobs):
            if not shard.number:
                priority, model = shard.priority, first
            total, shards = total + shard.jobs, shards + 1
        footer = BatchFooter(
            tenant=tenant, batch_id=batch, jobs=total, shards=shards, priority=priority,
            model=model or self.settings.model, webhook_url=webhook_url,
        )  # fmt: skip
        handle = self._handle(footer)
        new = self._create(keys.batch_footer(self.settings.store, tenant, batch), footer.to_json(), "batch")
        try:
            if new:
                self._batches.open(footer, look_again_in=self._look_again_in)
            else:
                handle.open_again()
        except QueueUnavailable as error:
            log.warning("%s: batch %s waits until somebody looks", error.code, batch)
        tracing.batch(tenant, batch, total, began, time.time())
        return handle

    def batch(self, batch_id: str, *, tenant: str = "default") -> BatchHandle:
        """A batch that was accepted before. Raises InvalidParameter if there is none of this name."""
        footer = self._shelf.footer(tenant, batch_id)
        if footer is None:
            raise InvalidParameter("batch_id", f"{batch_id!r} is no batch of tenant {tenant!r} in this farm")
        return self._handle(footer)

    def _handle(self, footer: BatchFooter) -> BatchHandle:
        return BatchHandle(footer, self._shelf, self.index, look_again_in=self._look_again_in)

    def map(
        self, jobs: Iterable[InpaintJob] | str | Path, *, ordered: bool = True, tenant: str = "default",
        window: int = 1000, chunk: int = 100, timeout: float | None = None, idempotency_key: str | None = None,
    ) -> Iterator[JobResult]:  # fmt: skip
        """The result of every job, in the jobs' order or (`ordered=False`) as they end; a failed job's result, too.

        `jobs` may be endless: it is read as results are taken, and about `window` jobs are in the farm or held back at
        a time. They are submitted `chunk` at once, so a `jobs` that yields slowly wants a small one. The same jobs
        under the same `idempotency_key` (and chunk) render once, so that a loop that was cut off can be run again.
        What was submitted is rendered although nobody takes its result. Raises as `submit_batch` does, and
        ResultTimeout when nothing has ended for `timeout` seconds.
        """
        if isinstance(jobs, (str, Path)):
            jobs = Manifest(jobs, settings=self.settings, store=self.store)
        source = iter(jobs)

        def submitted() -> Iterator[list[JobRef]]:
            for number in count():
                some = [
                    job if job.custom_id else job.model_copy(update={"custom_id": f"{number * chunk + place:08d}"})
                    for place, job in enumerate(islice(source, chunk))
                ]
                if not some:
                    return
                key = None if idempotency_key is None else f"{idempotency_key}/{number}"
                yield from self.submit_batch(some, tenant=tenant, idempotency_key=key).refs()

        following = Following(self.index, self._shelf, window=window)
        return following.results(submitted(), ordered=ordered, timeout=timeout)

    def retry(self, ref: JobRef) -> bool:
        """Give a job that failed another generation, its old result stays; False if it has one already."""
        if ref.shard == keys.SINGLE:
            return bool(self._ledger.enqueue(write_retry(self._shelf, ref.tenant, ref.batch_id, [ref])))
        return bool(self.batch(ref.batch_id, tenant=ref.tenant).retry([ref]))

    def _uploaded(self, tenant: str, batch: str, jobs: Iterable[InpaintJob]) -> Iterator[tuple[Shard, str]]:
        """Every shard once it is written, and the model of the batch's first job; a few are on their way at once."""
        models: list[str] = []

        def checked() -> Iterator[InpaintJob]:
            for index, job in enumerate(jobs):
                if job.tenant != tenant:
                    raise InvalidParameter("tenant", f"of job {index} is {job.tenant!r}, the batch's is {tenant!r}")
                if _late(job):
                    raise DeadlineInPast(f"The deadline {job.deadline} of job {index} has passed; give a later one.")
                if not index:
                    models.append(job.model)
                yield job if job.custom_id else job.model_copy(update={"custom_id": f"{index:08d}"})

        announced = time.monotonic()
        with ThreadPoolExecutor(_UPLOADS) as pool:
            flying: set[Future[Shard]] = set()
            for shard in shards_of(checked(), lambda job: self._line(job, batch)):
                flying.add(pool.submit(self._create_shard, tenant, batch, shard))
                if not shard.number:
                    wait(flying)  # if this key is another batch's, nothing more is written under it
                    next(iter(flying)).result()
                if time.monotonic() - announced > self._look_again_in / 3:
                    announced = time.monotonic()
                    self._announce(tenant, batch)
                if len(flying) >= 2 * _UPLOADS:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from ((one.result(), models[0]) for one in done)
            yield from ((one.result(), models[0]) for one in flying)

    def _create_shard(self, tenant: str, batch: str, shard: Shard) -> Shard:
        self._create(keys.spec_shard(self.settings.store, tenant, batch, shard.number), shard.data, "batch")
        return shard

    # Both

    def _line(self, job: InpaintJob, batch: str) -> bytes:
        """A job's spec as it is stored, if its tenant may submit it: the checks that the worker makes again."""
        self.tenants.check_job(job)
        return sized(self.tenants.seal(spec_line(job), tenant=job.tenant, batch_id=batch))

    def _announce(self, tenant: str, batch: str) -> None:
        """Refuse before anything is accepted, not after."""
        self.index.check_room(self.settings.redis_full_at)
        quota = self.tenants.policy(tenant).max_queued or self.settings.tenant_quota
        self._batches.announce(tenant, batch, look_again_in=self._look_again_in, quota=quota)

    def _create(self, uri: str, data: bytes, what: str) -> bool:
        """Whether it is there only now. Raises IdempotencyConflict where something else is."""
        kind = "application/json" if uri.endswith(".json") else "application/x-ndjson"
        try:
            self.store.put(uri, data, content_type=kind, create_only=True)
        except ObjectExists:
            if not self._stored(uri, data):
                raise IdempotencyConflict(
                    f"This idempotency key was used for another {what}; use a new key, or submit the same again."
                ) from None
            return False
        return True

    def _stored(self, uri: str, data: bytes) -> bool:
        try:
            there = self.store.get(uri, max_bytes=2 * MAX_BYTES).data
        except InputNotFound:
            return False
        return there == data or _unsigned(there) == _unsigned(data)  # the tenant's key may have changed since


def _unsigned(lines: bytes) -> list[bytes]:
    return [split_line(line)[0] for line in lines.splitlines(keepends=True)]


def _late(job: InpaintJob) -> bool:
    return job.deadline is not None and job.deadline <= datetime.now(UTC)
