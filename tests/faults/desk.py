"""A client beside a small fleet, for tests of one fault each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farm.config import load_settings
from farm.schemas import InpaintJob, JobResult
from farm.states import JobState
from producer.client import Client
from producer.handle import JobHandle
from tests.faults.evidence import left_in_redis
from tests.faults.fleet import QUICK, Child, Fleet
from tests.servers.s3 import S3Server

LEASE_SECONDS = 2.0
ENVIRONMENT = {"FARM_LEASE_SECONDS": str(LEASE_SECONDS), "FARM_CONCURRENCY": "2", "FARM_S3_READ_TIMEOUT": "5"}


class Desk:
    """Submits past the proxies, straight to Redis and S3; keeps the fleet running while it waits."""

    def __init__(self, fleet: Fleet):
        self.fleet = fleet
        self.settings = load_settings(redis_url=fleet.redis.url, store=fleet.root)
        self.client = Client(self.settings, store=fleet.store)

    def job(self, name: str, seconds: float = 0.1, **fields: Any) -> InpaintJob:
        """A job that takes so long to render, in 20 steps."""
        root = self.fleet.root
        job = {"tenant": "anna", "image": f"{root}/in/anna.png", "mask": f"{root}/in/mask.png"}
        return InpaintJob(
            **{**job, "num_inference_steps": 20, "custom_id": name, "metadata": {"seconds": str(seconds)}, **fields}
        )

    def submit(self, name: str, seconds: float = 0.1, **fields: Any) -> JobHandle:
        return self.client.submit(self.job(name, seconds, **fields))

    def wait(self, ready: Callable[[], bool], seconds: float = 30.0, what: str = "such thing") -> None:
        self.fleet.wait(ready, seconds, what)

    def ended(self, handle: JobHandle, seconds: float = 30.0) -> JobResult:
        """The result, once it is there."""
        self.wait(lambda: handle.peek() is not None, seconds, f"end of {handle.job.custom_id}")
        result = handle.peek()
        assert result is not None
        return result

    def running(self, handle: JobHandle) -> Child:
        """Wait until a worker renders the job; that worker."""
        self.wait(lambda: handle.status() is JobState.RUNNING and self.holder(handle) is not None, 30, "running job")
        holder = self.holder(handle)
        assert holder is not None
        time.sleep(0.3)  # into its steps
        return holder

    def noted(self, kind: str, handle: JobHandle) -> list[dict[str, Any]]:
        """The workers' notes of this kind on the job, in order of time, each with the worker's `pid`."""
        found = []
        for path in (self.fleet.folder / "events").glob("*.ndjson"):
            for line in path.read_bytes().splitlines():
                note = json.loads(line)
                if note["kind"] == kind and note.get("job") == handle.id:
                    found.append({**note, "pid": int(path.stem)})
        return sorted(found, key=lambda note: float(note["at"]))

    def claims(self, handle: JobHandle) -> list[dict[str, Any]]:
        return self.noted("claimed", handle)

    def holder(self, handle: JobHandle) -> Child | None:
        """The worker that was given the job last."""
        pids = {child.process.pid: child for child in self.fleet.workers if child.process is not None}
        claims = self.claims(handle)
        return pids.get(claims[-1]["pid"]) if claims else None

    def results_of(self, handle: JobHandle) -> list[str]:
        prefix = f"{self.fleet.root}/results/{handle.job.tenant}/{handle.batch_id}/"
        return [info.uri for info in self.fleet.store.list(prefix)]

    def at_rest(self, seconds: float = 30.0) -> None:
        """Wait until Redis holds nothing of any job."""
        with self.fleet.redis.client() as client:
            self.wait(lambda: not any(left_in_redis(client).values()), seconds, "rest")

    def ready(self) -> None:
        """Wait until every worker takes jobs."""

        def all_ready() -> bool:
            noted = {path.stem for path in (self.fleet.folder / "events").glob("*.ndjson") if path.stat().st_size}
            return all(child.process is not None and str(child.process.pid) in noted for child in self.fleet.workers)

        self.wait(all_ready, 60, "workers that are ready")


@contextmanager
def desk_with(
    folder: Path, s3: S3Server, bucket: str, *, workers: int = 2, dispatchers: int = 1, **environment: str
) -> Iterator[Desk]:
    """A fleet of workers that are all at work, and the desk beside it. `environment`: further FARM_* settings."""
    fleet = Fleet(
        folder,
        s3,
        bucket,
        programs=QUICK,
        environment={**ENVIRONMENT, **environment},
        workers=workers,
        dispatchers=dispatchers,
    )
    with fleet:
        desk = Desk(fleet)
        if workers:
            desk.ready()
        yield desk
