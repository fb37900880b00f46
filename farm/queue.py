"""The Celery application: one queue a model, JSON only, hints that may be lost or doubled without harm.

What each setting is for is said beside it; the ledger, not the broker, recovers work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu import compression
from kombu.exceptions import OperationalError

from farm import keys
from farm.config import Settings
from farm.errors import QueueUnavailable
from farm.ledger import JobRef
from farm.names import check_name
from farm.schemas import MAX_SPEC_BYTES

_compression: Any = compression  # which says no types
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
            # The lease in the ledger is what re-queues a job; this only clears hints that a killed worker left. A job
            # that takes longer is hinted twice, and the second hint finds it busy.
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "health_check_interval": 10,
        },
    )
    return app


def _refuse_compressed(body: bytes) -> bytes:
    raise ValueError("compressed messages are not taken")


# 600 kB of a compressed message inflate to gigabytes, before anybody looks at it.
for _kind in _compression.encoders():
    _compression.register(None, _refuse_compressed, _kind)


MAX_HINT = 256  # jobs that one message may stand for


class Hints:
    """Publishes hints. One instance may be shared by threads."""

    def __init__(self, app: Celery):
        self._app = app

    def publish(self, refs: Sequence[JobRef]) -> None:
        """Tell the workers of a model that there is something to claim: jobs of one batch, at most MAX_HINT.

        What goes first was decided by whoever took the jobs from the index; the queue keeps that order.
        """
        first = refs[0]
        hint = {
            "tenant": first.tenant,
            "batch_id": first.batch_id,
            "model": first.model,
            "jobs": [[ref.job_id, ref.shard, ref.offset, ref.length, ref.generation, ref.priority] for ref in refs],
        }
        try:
            self._app.send_task(RENDER, kwargs={"hint": hint}, queue=keys.queue(first.model), retry=False)
        except (OperationalError, OSError) as error:
            raise QueueUnavailable(
                f"The queue does not answer ({type(error).__name__}); check FARM_REDIS_URL."
            ) from error


def read_hint(payload: Any) -> list[JobRef]:
    """A hint's jobs; KeyError, TypeError, ValueError or InvalidName if it is none."""
    names = {name: payload[name] for name in ("tenant", "batch_id", "model")}
    for name, value in names.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is a {type(value).__name__}")
        check_name(name, value)
    if not 0 < len(payload["jobs"]) <= MAX_HINT:
        raise ValueError(f"a hint stands for 1 to {MAX_HINT} jobs")
    return [_read_job(names, *job) for job in payload["jobs"]]


def _read_job(names: dict[str, str], job_id: Any, *numbers: Any) -> JobRef:
    if not isinstance(job_id, str):
        raise TypeError(f"job_id is a {type(job_id).__name__}")
    check_name("job_id", job_id)
    if len(numbers) != 5 or any(type(number) is not int for number in numbers):
        raise TypeError("shard, offset, length, generation and priority are whole numbers")
    shard, offset, length, generation, priority = numbers
    if shard < keys.SINGLE or min(offset, generation) < 0 or not 0 < length <= MAX_SPEC_BYTES + 1:
        raise ValueError("shard, offset, length or generation is out of range")
    if not 0 <= priority <= 100:
        raise ValueError("priority is out of range")
    return JobRef(job_id, names["tenant"], names["batch_id"], names["model"], *numbers)
