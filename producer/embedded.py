"""A whole farm on this machine for the length of a `with` block: a private Redis, a local store, a dispatcher and one
worker, each a process.

For the demo and for tests. Nothing that runs already is touched: everything has its own port and its own folder, and
is stopped at the end, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from farm.config import Settings, load_settings
from farm.errors import Misconfigured
from producer.private_redis import PrivateRedis
from producer.process import Process, free_port


class EmbeddedFarm:
    """Redis, store, dispatcher and worker. `settings` is what a Client needs; `environment` what the worker got."""

    def __init__(self, folder: Path, *, model_path: Path, environment: Mapping[str, str] | None = None):
        self._folder, self._model_path, self._extra = folder, model_path, dict(environment or {})
        self._stack = ExitStack()
        self.worker: Process | None = None
        self.dispatcher: Process | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            redis = self.redis = stack.enter_context(PrivateRedis(self._folder / "redis"))
            self.environment = {
                "FARM_REDIS_URL": redis.url,
                "FARM_STORE": f"file://{(self._folder / 'store').resolve()}",
                "FARM_MODEL_PATH": str(self._model_path),
                "FARM_METRICS_HOST": "127.0.0.1",
                "FARM_METRICS_PORT": str(free_port()),
                **self._extra,
            }
            self.settings = _settings_from(self.environment)
            stack.callback(self.stop_dispatcher)
            self.start_dispatcher()
            stack.callback(self.stop_worker)
            self.start_worker()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_dispatcher(self) -> None:
        own = {"FARM_METRICS_PORT": str(free_port())}
        self.dispatcher = self._process("producer", "dispatcher", own)

    def stop_dispatcher(self) -> None:
        if self.dispatcher:
            self.dispatcher.stop(grace=10)

    def start_worker(self) -> None:
        self.worker = self._process("worker", "run", {})

    def _process(self, module: str, command: str, own: Mapping[str, str]) -> Process:
        environment = {**_without_ours(os.environ), **self.environment, **own}
        name = "worker" if module == "worker" else command
        return Process([sys.executable, "-m", module, command], self._folder / f"{name}.log", environment)

    def stop_worker(self) -> None:
        if self.worker:
            self.worker.stop(grace=20)

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.metrics_port}"

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the worker takes jobs. Raises Misconfigured with its last words if it ends or takes too long."""
        assert self.worker is not None, "the farm has not been entered"
        try:
            self.worker.wait_until(self._ready, timeout)
        except RuntimeError as error:
            raise Misconfigured(f"The worker did not become ready: {error}") from None

    def _ready(self) -> bool:
        try:
            with urlopen(f"{self.metrics_url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # an HTTP 503 is one too
            return False

    def scrape(self) -> str:
        """/metrics as Prometheus would read it."""
        with urlopen(f"{self.metrics_url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """A farm of one's own takes nothing from the settings of another."""
    return {name: value for name, value in environment.items() if not name.startswith("FARM_")}


def _settings_from(environment: Mapping[str, str]) -> Settings:
    names = {f"FARM_{name.upper()}": name for name in Settings.model_fields}
    lists = {name for name, field in Settings.model_fields.items() if field.annotation == tuple[str, ...]}
    given = {names[key]: value for key, value in environment.items() if key in names}
    return load_settings(**{name: json.loads(value) if name in lists else value for name, value in given.items()})
