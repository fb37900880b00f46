"""A child process that does not outlive its parent, and what its log says when it fails."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# The kernel kills the child when the thread that started it ends, however that ends. util-linux' setpriv says so, not a
# function run after the fork: with one, Python runs hooks of its own there, which swallow a Ctrl-C that arrives then.
_SETPRIV = shutil.which("setpriv")
_DIE_WITH_PARENT = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []


class Process:
    """One child; its output goes to `log`. `env` is its whole environment, the parent's where None."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None):
        self.command, self.log = command, log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [*_DIE_WITH_PARENT, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,  # Ctrl-C reaches only the parent, who stops it in good order
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def exit_code(self) -> int | None:
        return self.popen.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float, every: float = 0.05) -> None:
        """Returns when `ready()`; RuntimeError with the end of the log when the process dies or time runs out."""
        end = time.monotonic() + seconds
        while not ready():
            if self.exit_code is not None:
                raise RuntimeError(f"{self.command[0]} ended with {self.exit_code}:\n{self.tail()}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.command[0]} was not ready after {seconds:g} s:\n{self.tail()}")
            time.sleep(every)

    def tail(self, size: int = 3000) -> str:
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else "(no log)"

    def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `grace` seconds; the exit code. A stopped process is continued first."""
        if self.exit_code is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(grace)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer sends it."""
        if self.exit_code is None:
            self.popen.kill()
        self.popen.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
