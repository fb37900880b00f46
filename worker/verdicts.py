"""How an attempt ends: with a result that is written once, or with the job given back to be tried again."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import farm
from farm import keys, metrics
from farm.config import Settings
from farm.errors import (
    BY_CODE,
    Canceled,
    DeadlineExceeded,
    InputNotFound,
    InternalError,
    InvalidInput,
    ObjectExists,
    Preempted,
    QueueForbidden,
    Resource,
    SpecUnreadable,
    Transient,
    from_foreign,
)
from farm.ledger import Claim, JobRef, Ledger
from farm.logs import struck
from farm.schemas import ErrorInfo, Hashes, InpaintJob, JobResult, Output, Receipt
from farm.shards import MAX_RESULT_BYTES
from farm.states import JobState
from farm.storage import ObjectStore, shown
from farm.webhooks.outbox import note_job

log = logging.getLogger(__name__)

DEVICE_STAGES = ("lora", "vae_encode", "denoise", "vae_decode")
_MAX_STATE_BYTES = 512 * 1024**2


@dataclass
class Attempt:
    """What becomes known of a job on its way; a result is made from it at any point."""

    ref: JobRef
    claim: Claim
    job: InpaintJob | None = None
    seed: int | None = None
    timings: dict[str, float] = field(default_factory=dict)
    claimed: float = field(default_factory=time.monotonic)  # what was seen since is what the job is about
    started: float = field(default_factory=time.monotonic)
    hashes: dict[str, str] = field(default_factory=dict)
    lora_hashes: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    lora_swap_seconds: float = 0.0
    lora_mode: str = ""
    needs_review: bool = False
    rerenders: int = 0
    spans: list[tuple[str, float, float]] = field(default_factory=list)  # what was done when: name, begin, end
    committed: bool = False  # whether its result is the job's
    error: str = ""  # the code of what it ended by

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.spans.append((name, begin, time.monotonic()))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A span that the result tells of."""
        try:
            with self.span(name):
                yield
        finally:
            _, begin, end = self.spans[-1]
            self.timings[name] = self.timings.get(name, 0.0) + end - begin

    @property
    def device_seconds(self) -> float:
        return sum(self.timings.get(stage, 0.0) for stage in DEVICE_STAGES)


class Verdicts:
    """Reads and writes results. The first result of a job is its only one."""

    def __init__(self, settings: Settings, store: ObjectStore, ledger: Ledger, *, device: str, checkpoint_sha256: str):
        self._settings, self._store, self._ledger = settings, store, ledger
        self._device, self._checkpoint_sha256 = device, checkpoint_sha256

    def settle(self, attempt: Attempt, error: BaseException) -> JobState | None:
        """End an attempt that raised `error`: commit the failure, or give the job back (None)."""
        known = from_foreign(error)
        if known is None:
            out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            what = f"{type(error).__name__}: {shown(struck(str(error)))}"
            known = (Resource if out_of_memory else InternalError)(
                f"The worker failed in a way it does not know ({what}); tell its maintainers, with the job's id."
            )
            log.exception("unexpected failure", exc_info=error)
        attempt.error = known.code
        try:
            if isinstance(known, Canceled):  # by request (a result says so), or the lease is another's by now
                ended = self.read(attempt.ref)
                if ended is None and self._batch_canceled(attempt.ref):
                    return self.cancel(attempt)
                return ended.status if ended else None
            if isinstance(known, Preempted):
                state = getattr(known, "state", None)
                self._save(attempt.ref, state)
                self._release(attempt, 0.0, charged=False, saved=state is not None or attempt.claim.saved)
                log.info("preempted: %s", known)
                return None
            again = attempt.claim.attempt < self._settings.max_attempts or isinstance(known, SpecUnreadable)
            if isinstance(known, (Transient, Resource)) and again:
                delay = random.uniform(0, min(60.0, 2.0 ** min(attempt.claim.attempt - 1, 6)))  # full jitter
                log.warning("%s, trying again in %.1f s: %s", known.code, delay, known)
                self._release(attempt, delay)
                return None
            state = JobState.EXPIRED if isinstance(known, DeadlineExceeded) else JobState.FAILED
            if not isinstance(known, InvalidInput):
                log.error("%s: %s", known.code, known)
            return self.commit(attempt, state, error=ErrorInfo(code=known.code, message=known.message))
        except (Transient, QueueForbidden) as away:  # neither store nor Redis can be told; the lease ends by itself
            log.warning("cannot settle the job now (%s); its lease will end", away)
            return None

    def cancel(self, attempt: Attempt) -> JobState:
        return self.commit(
            attempt, JobState.CANCELED, error=ErrorInfo(code=Canceled.code, message="Its batch was canceled.")
        )

    def _release(self, attempt: Attempt, delay: float, *, charged: bool = True, saved: bool = False) -> None:
        self._ledger.release(attempt.ref, attempt.claim.owner, delay_seconds=delay, charged=charged, saved=saved)

    def _batch_canceled(self, ref: JobRef) -> bool:
        if ref.shard == keys.SINGLE:
            return False
        return self._store.exists(keys.batch_canceled(self._settings.store, ref.tenant, ref.batch_id))

    # A preempted job's state

    def saved_state(self, ref: JobRef) -> bytes | None:
        try:
            return self._store.get(self._state_uri(ref), max_bytes=_MAX_STATE_BYTES).data
        except InputNotFound:
            return None

    def _save(self, ref: JobRef, state: bytes | None) -> None:
        if state is not None:
            self._store.put(self._state_uri(ref), state, content_type="application/octet-stream", create_only=False)

    def _state_uri(self, ref: JobRef) -> str:
        return keys.state(self._settings.store, ref.tenant, ref.batch_id, ref.job_id, ref.generation)

    def _result_uri(self, ref: JobRef) -> str:
        return keys.result(self._settings.store, ref.tenant, ref.batch_id, ref.job_id, ref.generation)

    def read(self, ref: JobRef) -> JobResult | None:
        """How the job ended, None if it has not. A result that cannot be read is one all the same: it is the only."""
        try:
            data = self._store.get(self._result_uri(ref), max_bytes=MAX_RESULT_BYTES).data
        except InputNotFound:
            return None
        try:
            return JobResult.from_json(data)
        except InvalidInput as error:
            log.error("the result of %s cannot be read: %s", ref.job_id, error)
            return JobResult(
                job_id=ref.job_id, tenant=ref.tenant, batch_id=ref.batch_id, custom_id="", model=ref.model, image="",
                status=JobState.FAILED, finished_at=datetime.now(UTC),
            )  # fmt: skip

    def commit(
        self,
        attempt: Attempt,
        state: JobState,
        *,
        outputs: tuple[Output, ...] = (),
        receipt: Receipt | None = None,
        error: ErrorInfo | None = None,
    ) -> JobState:
        """Write the result; if another one is there already, that is the truth."""
        ref, job = attempt.ref, attempt.job
        attempt.timings["total"] = time.monotonic() - attempt.started
        result = JobResult(
            job_id=ref.job_id,
            tenant=ref.tenant,
            batch_id=ref.batch_id,
            custom_id=job.custom_id if job else "",
            generation=ref.generation,
            status=state,
            model=ref.model,
            image=job.image if job else "",
            mask=job.mask if job else None,
            prompt=job.prompt if job else "",
            loras=job.loras if job else (),
            outputs=outputs,
            error=error,
            warnings=attempt.warnings,
            receipt=receipt,
            needs_review=attempt.needs_review,
            rerenders=attempt.rerenders,
            seed=attempt.seed,
            attempt=attempt.claim.attempt,
            timings={name: round(seconds, 6) for name, seconds in attempt.timings.items()},
            lora_swap_seconds=round(attempt.lora_swap_seconds, 6),
            lora_mode=attempt.lora_mode,
            gpu_seconds=round(attempt.device_seconds, 6),
            hashes=Hashes(**attempt.hashes, checkpoint=self._checkpoint_sha256, loras=attempt.lora_hashes),
            version=farm.__version__,
            device=self._device,
            worker=self._settings.worker_name,
            finished_at=datetime.now(UTC),
            metadata=job.metadata if job else {},
        )
        if job is not None and job.webhook_url is not None:
            note_job(self._store, self._settings.store, ref)
        try:
            self._store.put(self._result_uri(ref), result.to_json(), content_type="application/json", create_only=True)
        except ObjectExists:
            winner = self.read(ref)
            state = winner.status if winner else state
        else:
            attempt.committed = True
            _count(result)
            if error is not None and not issubclass(BY_CODE[error.code], (InvalidInput, Canceled, DeadlineExceeded)):
                self._bury(ref, error)
        log.info("job %s", state.value)
        return state

    def _bury(self, ref: JobRef, error: ErrorInfo) -> None:
        """Note a job that was given up although nothing is known to be wrong with it, for `farm dead list`."""
        metrics.dead_jobs.inc()
        body = json.dumps({"ref": asdict(ref), "error": error.model_dump()}).encode()
        uri = keys.dead(self._settings.store, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
        with suppress(ObjectExists):
            self._store.put(uri, body, content_type="application/json", create_only=True)


def _count(result: JobResult) -> None:
    metrics.jobs.labels(result.model, result.status.value, result.error.code if result.error else "").inc()
    metrics.images.labels(result.model).inc(len(result.outputs))
    for stage, seconds in result.timings.items():
        metrics.job_seconds.labels(result.model, stage).observe(seconds)
