"""The control: Celery as its manual says to make it safe, and nothing else. Under the nemesis it loses jobs.

`acks_late` and `reject_on_worker_lost`, and a visibility timeout so short that every message which can come back does
so while the test still waits. `python -m tests.faults.plain_celery worker` and `… producer`.
"""

import base64
import json
import os
import random
import sys
import time
import uuid
from functools import cache
from pathlib import Path

import redis
from celery import Celery

from farm.config import load_settings
from tests.faults.notes import Notes

settings = load_settings()
store = cache(settings.open_store)
app = Celery("plain", broker=settings.redis_url, set_as_current=False)
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1, task_ignore_result=True
)
app.conf.broker_transport_options = {
    "visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1, "socket_timeout": 10,
}  # fmt: skip


@app.task(name="work", autoretry_for=(Exception,), max_retries=None, retry_backoff=True, retry_backoff_max=4)
def work(job: str) -> None:
    time.sleep(random.uniform(0.005, 0.2))
    store().put(f"{settings.store}/done/{job}", b"done", content_type="text/plain", create_only=False)


def waiting(client: redis.Redis) -> set[str]:
    """Jobs that Redis still holds: late, not lost."""
    messages = [json.loads(message) for message in client.lrange("celery", 0, -1)]
    messages += [json.loads(message)[0] for message in client.hvals("unacked")]
    return {json.loads(base64.b64decode(message["body"]))[0][0] for message in messages}


def produce() -> None:
    told = json.loads(os.environ["PRODUCER"])
    accepted = Notes(Path(told["log"]))
    while not Path(told["stop"]).exists():
        job = uuid.uuid4().hex
        work.apply_async((job,), retry=True)
        accepted.write(at=time.time(), jobs=[[job, json.dumps({})]])
        time.sleep(1 / told["rate"])


if __name__ == "__main__":
    app.worker_main(["worker", "-P", "threads", "-c", "4"]) if sys.argv[1] == "worker" else produce()
