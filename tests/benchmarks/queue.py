"""B9, the queue: jobs a second at each stage, bytes of Redis a job, and how long an idle farm takes to hint one.

    python -m tests.benchmarks.queue --jobs 10000 100000 1000000 [--store DIR] [--workers 1] [--out FILE.json]

accept    specs made, checked and written in sealed shards, as a client does it
index     their rows made, all of them (a farm makes only a window of them at a time), and their bytes
dispatch  all of them hinted as Celery messages, nobody there to take them
drain     a dispatcher and workers, real processes: claim, read the spec, no render, commit the result object, finish
idle      submit to an idle farm → its hint is in the worker's queue

Plain Celery, the peer, does the same work where it can: a message a job, acknowledged late, whose task commits the
same result object; published, then drained by as many workers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from farm import keys
from farm.config import Settings, load_settings
from farm.dispatcher.acceptance import Acceptance
from farm.ledger import Batches, Ledger, Window, connect
from farm.queue import MAX_HINT, Hints, make_app
from farm.schemas import InpaintJob
from farm.shards import Shelf
from producer.client import Client
from tests.benchmarks import noop
from tests.servers.redis import RedisServer

MODEL = "noop"


def jobs(number: int, store: str) -> Iterator[InpaintJob]:
    for index in range(number):
        yield InpaintJob(
            custom_id=f"sku-{index:08d}",
            model=MODEL,
            image=f"{store}/photos/sku-{index:08d}.png",
            mask=f"{store}/masks/sku-{index:08d}.png",
            prompt="red gradient studio backdrop, soft shadow",
            loras=({"path": f"{store}/loras/brand.safetensors", "scale": 0.8},),
            seed=index,
            num_inference_steps=20,
        )


class Bench:
    def __init__(self, folder: Path, workers: int):
        self.folder, self.workers = folder, workers

    @contextmanager
    def farm(self) -> Iterator[Settings]:
        """A fresh Redis and a fresh store."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "redis").mkdir(parents=True)
        server = RedisServer(self.folder / "redis").start()
        try:
            yield load_settings(redis_url=server.url, store=f"file://{self.folder}/store", model=MODEL)
        finally:
            server.stop()

    @contextmanager
    def processes(self, settings: Settings, *modules: str) -> Iterator[None]:
        environment = {
            **os.environ,
            "FARM_REDIS_URL": settings.redis_url,
            "FARM_STORE": settings.store,
            "FARM_MODEL": MODEL,
            "FARM_METRICS_PORT": "0",
            "FARM_LOG_LEVEL": "WARNING",
        }
        with (self.folder / "processes.log").open("ab") as log:
            children = [
                subprocess.Popen([sys.executable, "-m", *module.split()], env=environment, stdout=log, stderr=log)
                for module in modules
            ]
        try:
            yield
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(30)

    def stages(self, number: int) -> dict[str, float]:
        """Jobs a second of accept, index, dispatch and drain; Redis' bytes a job."""
        found: dict[str, float] = {}
        with self.farm() as settings:
            client, redis = Client(settings), connect(settings.redis_url)
            found["accept"] = number / seconds(
                lambda: client.submit_batch(jobs(number, settings.store), idempotency_key="b")
            )
            shelf, batches = Shelf(client.store, settings.store), Batches(redis)
            all_at_once = settings.model_copy(update={"max_indexed": number + 1})
            acceptance, window = Acceptance(batches, Ledger(redis), shelf, all_at_once), Window(redis)
            before = memory(redis)
            found["index"] = number / seconds(lambda: [None for _ in iter(acceptance.index, 0)])
            found["redis_bytes"] = (memory(redis) - before) / number
            hints = Hints(make_app(settings))

            def dispatch() -> None:
                while refs := window.take_ready(MODEL, window=number, limit=1000, quantum=MAX_HINT, look_again_in=3600):
                    for begin in range(0, len(refs), MAX_HINT):
                        hints.publish(refs[begin : begin + MAX_HINT])

            found["dispatch"] = number / seconds(dispatch)
        with self.farm() as settings:
            batch = Client(settings).submit_batch(jobs(number, settings.store))
            with self.processes(settings, "producer dispatcher", *["tests.benchmarks.noop farm"] * self.workers):
                rate = Rate(number)
                summary = batch.wait(on_progress=lambda summary: rate.seen(summary.ended))
            assert summary.counts == {"succeeded": number}, summary
            found["drain"] = rate.whole
        return found

    def idle(self, submissions: int) -> dict[str, float]:
        """Milliseconds from `submit` to the hint in the queue, nothing else going on."""
        waits = []
        with self.farm() as settings, self.processes(settings, "producer dispatcher"):
            client, redis = Client(settings), connect(settings.redis_url)
            for number, job in enumerate(jobs(submissions + 10, settings.store)):
                time.sleep(0.02)
                enqueue = client._ledger.enqueue
                began: list[float] = []

                def timed(refs: Any, enqueue: Any = enqueue, began: list[float] = began) -> int:
                    began.append(time.perf_counter())
                    return int(enqueue(refs))

                with mock.patch.object(client._ledger, "enqueue", timed):
                    client.submit(job)
                if redis.blpop([keys.queue(MODEL)], timeout=10) is None:
                    raise RuntimeError(f"no hint came; see {self.folder}/processes.log")
                if number >= 10:
                    waits.append(1000 * (time.perf_counter() - began[0]))
                window = Window(redis)
                redis.delete(keys.HINTED + MODEL)
                del window
        waits.sort()
        return {"idle_p50_ms": statistics.median(waits), "idle_p99_ms": waits[int(0.99 * len(waits))]}

    def plain_celery(self, number: int) -> dict[str, float]:
        """The peer: messages a second published, jobs a second drained."""
        with self.farm() as settings:
            (self.folder / "store").mkdir()
            app = noop.plain_app(settings)
            lines = [job.model_dump(mode="json", exclude_defaults=True) for job in jobs(number, settings.store)]
            task = app.tasks["plain"]

            def publish() -> None:
                for line in lines:
                    task.apply_async(args=[line])

            found = {"celery_publish": number / seconds(publish)}
            results = self.folder / "store" / "results"
            with self.processes(settings, *["tests.benchmarks.noop plain"] * self.workers):
                rate = Rate(number)
                while (ended := len(list(results.iterdir())) if results.is_dir() else 0) < number:
                    rate.seen(ended)
                    time.sleep(0.2)
                rate.seen(ended)
            found["celery_drain"] = rate.whole
        return found


class Rate:
    """Jobs a second from the first that is seen to have ended to the last; start-up is not counted."""

    def __init__(self, number: int):
        self._number, self._first, self.whole, self._said = number, (0.0, 0), 0.0, 0.0

    def seen(self, ended: int) -> None:
        now = time.monotonic()
        if ended and not self._first[0]:
            self._first = (now, ended)
        elif ended and now > self._first[0]:
            self.whole = (ended - self._first[1]) / (now - self._first[0])
        if now - self._said > 5:
            self._said = now
            left = (self._number - ended) / self.whole if self.whole else 0
            sys.stderr.write(f"  {ended:,} of {self._number:,}, {self.whole:,.0f}/s, {left:.0f} s left\n")


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory(redis: Any) -> int:
    return int(redis.info("memory")["used_memory"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[10_000])
    parser.add_argument("--store", type=Path, help="folder of the store; default: a temporary one")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    given = parser.parse_args()
    folder = (given.store or Path(tempfile.mkdtemp())) / "farm-bench"
    bench, rows = Bench(folder, given.workers), []
    peer = bench.plain_celery(min(10_000, *given.jobs))
    for number in given.jobs:
        sys.stderr.write(f"{number:,} jobs\n")
        rows.append({"jobs": number, **bench.stages(number)})
    idle = bench.idle(200)
    print(f"store: local folder {folder.parent}, {given.workers} workers, {os.cpu_count()} cores")
    print("|      jobs | accept/s | index/s | dispatch/s | drain/s | Redis bytes a job |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            "| {jobs:,} | {accept:,.0f} | {index:,.0f} | {dispatch:,.0f} | {drain:,.0f} | {redis_bytes:.0f} |".format(
                **row
            )
        )
    print("idle dispatch: p50 {idle_p50_ms:.1f} ms, p99 {idle_p99_ms:.1f} ms".format(**idle))
    print("plain Celery: published {celery_publish:,.0f}/s, drained {celery_drain:,.0f}/s".format(**peer))
    if given.out:
        given.out.write_text(json.dumps({"rows": rows, **idle, **peer}, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
