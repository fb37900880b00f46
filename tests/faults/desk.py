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
        found: list[Child] = []

        def holder() -> bool:
            painting = self._notes(lambda note: note["kind"] == "painting" and note["name"] == handle.job.custom_id)
            pid = painting[-1]["pid"] if painting else None
            found.extend(one for one in self.fleet.workers if one.process is not None and one.process.pid == pid)
            return bool(found)

        self.wait(holder, 30, f"render of {handle.job.custom_id}")
        time.sleep(0.3)  # into its steps
        return found[0]

    def claims(self, handle: JobHandle) -> list[dict[str, Any]]:
        """The workers' notes that they were given the job, in order of time, each with the worker's `pid`."""
        return self._notes(lambda note: note["kind"] == "claimed" and note["job"] == handle.id)

    def returns(self, handle: JobHandle) -> list[dict[str, Any]]:
        """Their notes that they gave it back, not charged."""
        return self._notes(lambda note: note["kind"] == "given back" and note["job"] == handle.id)

    def steps(self, handle: JobHandle) -> list[dict[str, Any]]:
        """Their notes of each step of it that they made, and that they were told to end, in order of time."""
        kinds = {("step", handle.job.custom_id), ("draining", None)}
        return self._notes(lambda note: (note["kind"], note.get("name")) in kinds)

    def _notes(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        found = []
        for path in (self.fleet.folder / "events").glob("*.ndjson"):
            notes = [json.loads(line) for line in path.read_bytes().splitlines()]
            found += [{**note, "pid": int(path.stem)} for note in notes if wanted(note)]
        return sorted(found, key=lambda note: float(note["at"]))

    def results_of(self, handle: JobHandle) -> list[str]:
        prefix = f"{self.fleet.root}/results/{handle.job.tenant}/{handle.batch_id}/"
        return [info.uri for info in self.fleet.store.list(prefix)]

    def at_rest(self, seconds: float = 30.0) -> None:
        """Wait until Redis holds nothing of any job."""
        with self.fleet.redis.client() as client:
            try:
                self.wait(lambda: not any(left_in_redis(client).values()), seconds, "rest")
            except TimeoutError as error:
                raise AssertionError(f"left in Redis: {left_in_redis(client)}\n{error}") from None

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
        environment={**ENVIRONMENT, **QUICK, **environment},
        workers=workers,
        dispatchers=dispatchers,
    )
    with fleet:
        desk = Desk(fleet)
        if workers:
            desk.ready()
            desk.ended(desk.submit("first"), 60)  # a dispatcher is at work, too
        yield desk
