"""The Celery application: one queue a model, JSON only, hints that may be lost or doubled without harm.

What each setting is for is said beside it; the ledger, not the broker, recovers work.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from farm import keys
from farm.config import Settings
from farm.errors import QueueUnavailable
from farm.ledger import JobRef
from farm.names import check_name
from farm.schemas import MAX_SPEC_BYTES

RENDER = "farm.render"  # the task's name: producers submit by it and import nothing of the worker


def make_app(settings: Settings) -> Celery:
    app = Celery("inpaint-farm", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=keys.queue(settings.model),
        task_serializer="json",
        accept_content=["json"],  # a pickle on the wire is refused, not run
        result_backend=None,
        task_ignore_result=True,  # results live in the object store
        task_acks_late=True,  # a hint outlives a worker that dies with it
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": 24 * 3600,  # the lease in the ledger is what re-queues a job
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "health_check_interval": 10,
        },
    )
    return app


class Hints:
    """Publishes hints. One instance may be shared by threads."""

    def __init__(self, app: Celery):
        self._app = app

    def publish(self, ref: JobRef, *, priority: int = 50) -> None:
        """Tell the workers of `ref.model` that there is something to claim. `priority` 0–100, higher goes first."""
        try:
            self._app.send_task(
                RENDER,
                kwargs={"ref": asdict(ref)},
                queue=keys.queue(ref.model),
                priority=_level(priority),
                retry=False,
            )
        except (OperationalError, OSError) as error:
            raise QueueUnavailable(
                f"The queue does not answer ({type(error).__name__}); check FARM_REDIS_URL."
            ) from error


def _level(priority: int) -> int:
    """Celery's Redis transport has the levels 0 (first) to 9 (last) and keeps a list for every third of them."""
    return 9 - min(priority, 99) // 10


def read_hint(payload: Any) -> JobRef:
    """A hint's payload as a JobRef; TypeError, ValueError or InvalidName if it is not one."""
    ref = JobRef(**payload)
    for field in ("job_id", "tenant", "batch_id", "model"):
        value = getattr(ref, field)
        if not isinstance(value, str):
            raise TypeError(f"{field} is a {type(value).__name__}")
        check_name(field, value)
    numbers = (ref.shard, ref.offset, ref.length)
    if any(type(number) is not int for number in numbers):
        raise TypeError("shard, offset and length are whole numbers")
    if min(numbers) < 0 or not 0 < ref.length <= MAX_SPEC_BYTES + 1:
        raise ValueError("shard, offset or length is out of range")
    return ref
