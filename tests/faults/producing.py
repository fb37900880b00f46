"""A producer that may be killed at any moment and is then started again: `python -m tests.faults.producing`.

What it is told is in PRODUCER, JSON: tenant, seed, rate (jobs a second), log and stop (files). Its work is a sequence
that follows from seed and tenant alone: single jobs and batches. Each has an idempotency key, and what the farm
accepted is appended to the log. A producer that starts again goes on after its last line, so it submits once more what
it was submitting when it was killed. It ends when the file `stop` exists.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from farm import keys
from farm.config import load_settings
from farm.errors import FarmError
from farm.logs import set_up
from farm.schemas import InpaintJob, spec_line
from producer.client import Client
from tests.faults.notes import Notes

log = logging.getLogger(__name__)

LARGEST = 40  # jobs of a batch


def submissions(seed: int, tenant: str, store: str) -> Iterator[tuple[str, list[InpaintJob]]]:
    """(idempotency key, jobs), for ever; a third are batches."""
    for number in itertools.count():
        key = f"{seed}-{tenant}-{number}"
        chance = random.Random(key)
        count = chance.randint(2, LARGEST) if chance.random() < 1 / 3 else 1
        yield (
            key,
            [
                InpaintJob(
                    tenant=tenant,
                    custom_id=f"{number:05d}-{index:04d}",
                    image=f"{store}/in/{tenant}.png",
                    mask=f"{store}/in/mask.png",
                    num_inference_steps=chance.randint(1, 10),
                    seed=chance.randrange(1 << 31),
                    priority=chance.choice((0, 50, 50, 100)),
                )
                for index in range(count)
            ],
        )


def submit(client: Client, jobs: list[InpaintJob], key: str) -> str:
    """Hand the jobs in; their batch's id."""
    if len(jobs) == 1:
        return client.submit(jobs[0], idempotency_key=key).batch_id
    return client.submit_batch(jobs, tenant=jobs[0].tenant, idempotency_key=key).id


def main() -> int:
    settings = load_settings()
    set_up(settings.log_level)
    told = json.loads(os.environ["PRODUCER"])
    tenant, stop, book = told["tenant"], Path(told["stop"]), Path(told["log"])
    accepted = Notes(book)
    client = Client(settings)
    done = book.read_bytes().count(b"\n")
    for key, jobs in itertools.islice(submissions(told["seed"], tenant, settings.store), done, None):
        while True:
            try:
                batch = submit(client, jobs, key)
                break
            except FarmError as error:
                if not error.retryable:
                    raise
                log.warning("%s: %s", error.code, error)
                time.sleep(random.uniform(0, 1))
        accepted.write(
            at=time.time(),
            key=key,
            jobs=[[keys.job_id(tenant, batch, job.custom_id), spec_line(job).decode()] for job in jobs],
        )
        if stop.exists():
            return 0
        time.sleep(len(jobs) / told["rate"])
    raise AssertionError("the sequence never ends")


if __name__ == "__main__":
    sys.exit(main())
