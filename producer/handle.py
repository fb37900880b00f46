"""`JobHandle`: one submitted job, watched and canceled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import farm
from farm import keys
from farm.errors import Canceled, JobFailed, ObjectExists, QueueUnavailable, ResultTimeout
from farm.ledger import JobRef, Ledger
from farm.schemas import ErrorInfo, InpaintJob, JobResult
from farm.shards import Shelf
from farm.states import JobState
from farm.webhooks.outbox import note_job
from producer.results import read_result


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job came into another state. `at` is when this client saw it; `result` comes with the last event."""

    state: JobState
    at: datetime
    result: JobResult | None = None


class JobHandle:
    """What `Client.submit` returns; `Client.job` opens it again. The store answers; Redis only makes it quick."""

    def __init__(self, ref: JobRef, job: InpaintJob, shelf: Shelf, ledger: Ledger):
        self._ref, self.job, self._shelf, self._ledger = ref, job, shelf, ledger
        self._result_uri = keys.result(shelf.root, ref.tenant, ref.batch_id, ref.job_id, ref.generation)

    @property
    def id(self) -> str:
        return self._ref.job_id

    @property
    def batch_id(self) -> str:
        return self._ref.batch_id

    @property
    def address(self) -> str:
        """What `Client.job` and `farm status` take: "<batch id>/<custom_id>"."""
        return f"{self._ref.batch_id}/{self.job.custom_id}"

    def __repr__(self) -> str:
        return f"JobHandle(address={self.address!r}, id={self.id!r})"

    def status(self) -> JobState:
        """Where the job is now; a result outranks the index. Raises StoreUnavailable."""
        result = self.peek()
        if result is not None:
            return result.status
        return self._indexed() or JobState.QUEUED

    def _indexed(self) -> JobState | None:
        """What the index says of a job that has no result yet; None when it knows nothing or does not answer."""
        try:
            state = self._ledger.state(self.id)
        except QueueUnavailable:
            return None
        return None if state is None or state.terminal else state

    def peek(self) -> JobResult | None:
        """The result if the job has ended, else None; never waits."""
        return read_result(self._shelf, self._ref)

    def events(self, timeout: float | None = None) -> Iterator[JobEvent]:
        """The job's states from now on, as this client sees them (short ones may be missed); the last has the result.

        Raises ResultTimeout when the job has not ended after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen, pause = None, 0.05
        while True:
            result = self.peek()
            state = result.status if result else self._indexed() or JobState.QUEUED
            if state is not seen:
                yield JobEvent(state, datetime.now(UTC), result)
                seen, pause = state, 0.05
            if result is not None:
                return
            if end is not None and time.monotonic() >= end:
                raise ResultTimeout(f"Job {self.id} has not ended after {timeout:g} s; it is {state}.")
            time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
            pause = min(pause * 1.5, 0.5)

    def result(self, timeout: float | None = None, *, check: bool = True) -> JobResult:
        """Wait up to `timeout` seconds (None: for ever) for the job to end.

        Raises ResultTimeout; and, with `check`, JobFailed (its `.result` is the JobResult) or Canceled.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause, asked_store = 0.02, 0.0
        while True:
            # Without a word from the index (ended, lost, away) the store is asked; and in any case now and then.
            if self._indexed() is None or time.monotonic() - asked_store > 5:
                result, asked_store = self.peek(), time.monotonic()
                if result is not None:
                    return _checked(result) if check else result
            if end is not None and time.monotonic() >= end:
                raise ResultTimeout(f"Job {self.id} has not ended after {timeout:g} s; it is {self.status()}.")
            time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
            pause = min(pause * 1.5, 0.5)

    def cancel(self) -> JobState:
        """Cancel the job and return how it ended: `canceled`, or what it had already come to."""
        job, ref = self.job, self._ref
        result = JobResult(
            job_id=ref.job_id,
            tenant=ref.tenant,
            batch_id=ref.batch_id,
            custom_id=job.custom_id,
            generation=ref.generation,
            status=JobState.CANCELED,
            model=job.model,
            image=job.image,
            mask=job.mask,
            prompt=job.prompt,
            loras=job.loras,
            error=ErrorInfo(code=Canceled.code, message="Canceled on request."),
            version=farm.__version__,
            finished_at=datetime.now(UTC),
            metadata=job.metadata,
        )
        if job.webhook_url is not None:
            note_job(self._shelf.store, self._shelf.root, ref)
        try:
            self._shelf.store.put(self._result_uri, result.to_json(), content_type="application/json", create_only=True)
        except ObjectExists:
            ended = self.peek()
            state = ended.status if ended else JobState.CANCELED
        else:
            state = JobState.CANCELED
        with suppress(QueueUnavailable):  # the result is the truth; this only makes a running worker stop at once
            self._ledger.finish([(ref, state, 0.0)])
        return state


def _checked(result: JobResult) -> JobResult:
    if result.status is JobState.CANCELED:
        raise Canceled(f"Job {result.job_id} was canceled.")
    if result.status is not JobState.SUCCEEDED:
        error = result.error or ErrorInfo(code="FarmError", message="No reason was recorded.")
        raise JobFailed(f"Job {result.job_id} {result.status}: {error.code}: {error.message}", result)
    return result
