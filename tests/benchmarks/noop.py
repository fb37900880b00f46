"""Workers that render nothing and commit everything: `python -m tests.benchmarks.noop farm|plain`."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from farm.config import Settings, load_settings
from farm.errors import FarmError, ObjectExists
from farm.health import Health
from farm.ledger import Claim, JobRef, Ledger, connect
from farm.logs import set_up
from farm.schemas import InpaintJob, JobResult
from farm.states import JobState
from worker.lease import JobLease
from worker.lifecycle import consume
from worker.runner import Runner
from worker.verdicts import Attempt


class NoopRunner(Runner):
    """Everything of a worker but the picture: claims, reads and checks the spec, commits the result, finishes."""

    def _look_ahead(self, mine: list[tuple[JobRef, Claim]], lines: dict[str, bytes | FarmError], since: float) -> None:
        """Nothing is painted, so nothing is fetched for it."""

    def _render(self, attempt: Attempt, line: bytes, lease: JobLease) -> tuple[tuple[()], None]:
        attempt.job = self._admitted(attempt.ref, line)
        lease.moved()
        return (), None


class NoRenderer:
    device, checkpoint_sha256 = "cpu", "0" * 64


def farm_worker(settings: Settings) -> int:
    health = Health("127.0.0.1", 0, refresh=lambda: None)
    runner = NoopRunner(settings, settings.open_store(), Ledger(connect(settings.redis_url)), NoRenderer())
    return consume(settings, runner, health, concurrency=settings.in_hand(1))


def plain_app(settings: Settings) -> Celery:
    """What Celery's documentation recommends against loss: acknowledge late, reject on a lost worker, prefetch one."""
    app = Celery("plain", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1, task_ignore_result=True
    )
    store = settings.open_store()

    @app.task(name="plain")
    def plain(fields: dict[str, Any]) -> None:
        job = InpaintJob(**fields)
        result = JobResult(
            job_id=job.custom_id, tenant=job.tenant, batch_id="plain", custom_id=job.custom_id,
            status=JobState.SUCCEEDED, model=job.model, image=job.image, mask=job.mask, prompt=job.prompt,
            loras=job.loras, finished_at=datetime.now(UTC),
        )  # fmt: skip
        uri = f"{settings.store}/results/{job.custom_id}.json"
        with suppress(ObjectExists):
            store.put(uri, result.to_json(), content_type="application/json", create_only=True)

    return app


def main() -> int:
    settings = load_settings()
    set_up(settings.log_level)
    if sys.argv[1] == "farm":
        return farm_worker(settings)
    worker = plain_app(settings).Worker(pool="threads", concurrency=settings.in_hand(1), quiet=True)
    worker.start()
    return 0


if __name__ == "__main__":
    sys.exit(main())
