"""`Client`: accepts a job into the store, indexes it and tells the workers.

Accepted means: the spec's create-once object is written and the job is in the index. When `submit` raises, submit the
same job again under the same idempotency key: what was done is not done twice.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from farm import keys
from farm.config import Settings, load_settings
from farm.errors import DeadlineInPast, IdempotencyConflict, ObjectExists, QueueUnavailable, SpecTooLarge
from farm.ledger import JobRef, Ledger, connect
from farm.queue import Hints, make_app
from farm.schemas import MAX_SPEC_BYTES, InpaintJob, dump_line
from farm.states import JobState
from farm.storage import ObjectStore
from producer.handle import JobHandle

log = logging.getLogger(__name__)

# If the hint below is lost, the job is looked at again after so long.
LOOK_AGAIN_SECONDS = 30.0


class Client:
    """A connection to one farm: its Redis and its store, from `settings` or the FARM_* environment."""

    def __init__(self, settings: Settings | None = None, *, store: ObjectStore | None = None):
        self.settings = settings or load_settings()
        self.store = store or self.settings.open_store()
        self._ledger = Ledger(connect(self.settings.redis_url))
        self._hints = Hints(make_app(self.settings))

    def ping(self) -> None:
        """Raises QueueUnavailable if Redis does not answer."""
        self._ledger.ping()

    def submit(self, job: InpaintJob, *, idempotency_key: str | None = None) -> JobHandle:
        """Accept one job and return its handle.

        The same `idempotency_key` with the same job gives the same handle and renders once; with another job it
        raises IdempotencyConflict. Raises InvalidInput for a job that cannot be right, StoreUnavailable or
        QueueUnavailable when the farm cannot be reached ("try later").
        """
        if job.deadline is not None and job.deadline <= datetime.now(UTC):
            raise DeadlineInPast(f"The deadline {job.deadline.isoformat()} has passed already; give a later one.")
        self._ledger.ping()  # refuse before anything is accepted, not after
        if not job.custom_id:
            job = job.model_copy(update={"custom_id": job.content_name()})
        batch = keys.batch_id(job.tenant, idempotency_key)
        ref = self._accept(job, batch)
        self._ledger.enqueue(ref, look_again_in=LOOK_AGAIN_SECONDS)
        if self._ledger.state(ref.job_id) is JobState.QUEUED:  # also a second time: the first hint may never have left
            self._hint(ref, job.priority)
        return JobHandle(ref, job, self.store, self._ledger, self.settings.store)

    def _hint(self, ref: JobRef, priority: int) -> None:
        try:
            self._hints.publish(ref, priority=priority)
        except QueueUnavailable as error:  # the job is accepted and due: it is hinted without us
            log.warning("%s: job %s waits for its next look", error.code, ref.job_id)

    def _accept(self, job: InpaintJob, batch: str) -> JobRef:
        line = dump_line(job)
        if len(line) > MAX_SPEC_BYTES:
            raise SpecTooLarge(f"The job is {len(line)} bytes of JSON, at most {MAX_SPEC_BYTES} are taken; shorten it.")
        uri = keys.spec_shard(self.settings.store, job.tenant, batch, 0)
        try:
            self.store.put(uri, line, content_type="application/x-ndjson", create_only=True)
        except ObjectExists:
            if self.store.get(uri, max_bytes=2 * MAX_SPEC_BYTES).data != line:
                raise IdempotencyConflict(
                    "This idempotency key was used for another job; use a new key, or submit the same job again."
                ) from None
        job_id = keys.job_id(job.tenant, batch, job.custom_id)
        return JobRef(job_id, job.tenant, batch, job.model, 0, 0, len(line))
