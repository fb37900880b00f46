"""All that faults are done to in a run: servers behind proxies, and processes that are started again when they end.

One loop owns it all (`tick`): the kernel kills a child when the thread that started it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from farm.storage import ObjectStore
from producer.process import Process
from tests.faults.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server

RESTART_SECONDS = 0.5
_QUICK_SECONDS, _QUICK_ENDS = 5.0, 8  # a child that ends so soon so often in a row is broken, not hurt
COLOURS = {"anna": (200, 30, 30), "bert": (30, 30, 200)}  # a tenant's photo, so that a picture tells whose it is


class Child:
    """A process that is started again when it ends, until it ends well or is stopped."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str]):
        self.name = name
        self._command, self._log, self._environment = command, folder / f"{name}.log", environment
        self._again_at, self._quick = 0.0, 0
        self.exits: list[int] = []
        self.process: Process | None = None
        self.start()

    def start(self) -> None:
        self.process = Process(self._command, self._log, {**os.environ, **self._environment})
        self._started_at = time.monotonic()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.exit_code is None

    @property
    def done(self) -> bool:
        return self.process is None and bool(self.exits) and self.exits[-1] == 0

    def tick(self, *, restart: bool) -> None:
        if self.process is not None and self.process.exit_code is not None:
            self.exits.append(self.process.exit_code)
            quick = time.monotonic() - self._started_at < _QUICK_SECONDS and self.process.exit_code != 0
            self._quick = self._quick + 1 if quick else 0
            if self._quick >= _QUICK_ENDS:
                raise RuntimeError(f"{self.name} does not run:\n{self.process.tail()}")
            self.process, self._again_at = None, time.monotonic() + RESTART_SECONDS
        if self.process is None and restart and time.monotonic() >= self._again_at:
            self.start()

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.exit_code is None:
            self.process.popen.send_signal(number)

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@dataclass(frozen=True)
class Programs:
    """What a fleet runs: arguments of the interpreter."""

    worker: tuple[str, ...] = ("-m", "tests.faults.noop_worker")
    dispatcher: tuple[str, ...] = ("-m", "producer", "dispatcher")
    producer: tuple[str, ...] = ("-m", "tests.faults.producing")


SHIPPED = Programs()
# A dispatcher that looks again after seconds where by default it waits half a minute, so that tests need not.
QUICK = {"FARM_HINT_LOOK_SECONDS": "3", "FARM_BATCH_LOOK_SECONDS": "3"}


class Fleet:
    """Redis and S3 behind proxies; workers, dispatchers, and a producer a tenant. Use it in a `with` block."""

    def __init__(
        self,
        folder: Path,
        s3: S3Server,
        bucket: str,
        *,
        programs: Programs = SHIPPED,
        environment: Mapping[str, str] | None = None,
        workers: int = 2,
        dispatchers: int = 2,
        tenants: tuple[str, ...] = (),
        rate: float = 10.0,
        seed: int = 0,
    ):
        """`rate`: jobs a second of a tenant's producer. `seed`: of the producers' work and the proxies' chances."""
        self.folder, self.seed = folder, seed
        self.root = f"s3://{bucket}/farm"
        self.store: ObjectStore = s3.store()
        self.redis = RedisServer(folder / "redis", appendfsync="always")
        self._s3, self._programs, self._extra = s3, programs, dict(environment or {})
        self._numbers, self._tenants, self._rate = (workers, dispatchers), tenants, rate
        self.workers: list[Child] = []
        self.dispatchers: list[Child] = []
        self.producers: list[Child] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            self.redis_proxy = stack.enter_context(Proxy(self.redis.port, seed=self.seed))
            self.s3_proxy = stack.enter_context(Proxy(int(self._s3.endpoint.rsplit(":", 1)[1]), seed=self.seed))
            self._lay_out_inputs()
            stack.callback(self._stop_all)
            self._start_all()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the farm, through the proxies."""
        s3 = {**self._s3.environment(), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.s3_proxy.port}"}
        return {
            **s3,
            "FARM_REDIS_URL": f"redis://127.0.0.1:{self.redis_proxy.port}/0",
            "FARM_STORE": self.root,
            "FARM_SIZE_BUCKETS": '["64x64"]',
            "FARM_METRICS_PORT": "0",
            "FARM_METRICS_HOST": "127.0.0.1",
            "NOOP_EVENTS": str(self.folder / "events"),
            **self._extra,
        }

    def _start_all(self) -> None:
        workers, dispatchers = self._numbers
        for number in range(workers):
            name = f"worker-{number}"
            self.workers.append(self._child(name, self._programs.worker, {"FARM_WORKER_NAME": name}))
        for number in range(dispatchers):
            self.dispatchers.append(self._child(f"dispatcher-{number}", self._programs.dispatcher, {}))
        for tenant in self._tenants:
            told = {"tenant": tenant, "seed": self.seed, "rate": self._rate}
            files = {"log": str(self.folder / f"accepted-{tenant}.ndjson"), "stop": str(self.folder / "stop")}
            own = {"PRODUCER": json.dumps({**told, **files})}
            self.producers.append(self._child(f"producer-{tenant}", self._programs.producer, own))

    def _child(self, name: str, program: tuple[str, ...], own: Mapping[str, str]) -> Child:
        return Child(name, [sys.executable, *program], self.folder, {**self.environment, **own})

    def children(self) -> list[Child]:
        return [*self.workers, *self.dispatchers, *self.producers]

    def tick(self) -> None:
        """Start again what has ended."""
        for child in (*self.workers, *self.dispatchers):
            child.tick(restart=True)
        for child in self.producers:
            child.tick(restart=not child.done)

    def stop_producing(self, seconds: float) -> None:
        """Let the producers end, each after its submission at hand. TimeoutError when one does not."""
        (self.folder / "stop").touch()
        self.wait(lambda: all(child.done for child in self.producers), seconds, "the producers' end")

    def wait(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Keep the fleet running until `ready()`. TimeoutError with the ends of the logs."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                tails = "\n".join(f"--- {child.name}\n{child.log()[-1500:]}" for child in self.children())
                raise TimeoutError(f"no {what} within {seconds:g} s\n{tails}")
            self.tick()
            time.sleep(0.05)

    def drain_workers(self, seconds: float) -> list[int | None]:
        """SIGTERM to all workers and dispatchers; their exit codes, None for one that did not end in time."""
        ending = [child for child in (*self.workers, *self.dispatchers) if child.alive]
        for child in ending:
            child.signal(signal.SIGTERM)
        end = time.monotonic() + seconds
        while any(child.alive for child in ending) and time.monotonic() < end:
            time.sleep(0.05)
        return [child.process.exit_code for child in ending if child.process is not None]

    def _stop_all(self) -> None:
        for child in self.children():
            if child.process is not None:
                child.process.kill()

    def _lay_out_inputs(self) -> None:
        mask = Image.new("L", (48, 32), 0)
        mask.paste(255, (16, 8, 32, 24))
        pictures = {f"{tenant}.png": Image.new("RGB", mask.size, colour) for tenant, colour in COLOURS.items()}
        for name, picture in {**pictures, "mask.png": mask}.items():
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            self.store.put(f"{self.root}/in/{name}", buffer.getvalue(), content_type="image/png", create_only=False)


def shown_tenant(data: bytes) -> str:
    """Whose photo a picture shows, by a pixel outside the mask."""
    colour = Image.open(BytesIO(data)).convert("RGB").getpixel((0, 0))
    return next((tenant for tenant, its in COLOURS.items() if its == colour), f"nobody ({colour})")
