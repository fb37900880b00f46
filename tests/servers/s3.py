"""The S3 server of a test run: Ceph's radosgw, started once and shared by all test processes; moto where it is missing.

moto forgets signatures and once in a while lets two create-once writes win, so it is a stand-in and no proof:
with CI=true in the environment a missing radosgw is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from farm.storage import S3Settings
from farm.storage.s3 import S3Store
from tests.servers import ceph

_START_SECONDS = 150


@dataclass(frozen=True)
class S3Server:
    kind: str  # "radosgw" or "moto"
    endpoint: str
    access_key: str = ceph.ACCESS_KEY
    secret_key: str = ceph.SECRET_KEY
    folder: Path | None = None  # a radosgw's cluster

    def settings(self, **changes: Any) -> S3Settings:
        return S3Settings(
            **{
                "endpoint_url": self.endpoint,
                "region": "us-east-1",
                "access_key": self.access_key,
                "secret_key": self.secret_key,
                "path_style": True,
                **changes,
            }
        )

    def environment(self) -> dict[str, str]:
        """What another process needs in its environment to reach this server through boto3's own means."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def store(self) -> S3Store:
        return S3Store(self.settings())

    def as_user(self, name: str) -> S3Server:
        """The same server for a user of its own, made by this call; only radosgw knows of users."""
        assert self.folder is not None, f"{self.kind} has no users"
        access_key, secret_key = f"KEY-{name}", f"SECRET-{name}"
        ceph.Ceph(self.folder).make_user(name, access_key, secret_key)
        return S3Server(self.kind, self.endpoint, access_key, secret_key, self.folder)

    @cached_property
    def client(self) -> Any:
        """A plain boto3 client, for what the port does not offer: buckets, policies, foreign objects."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
        )


def why_moto() -> str | None:
    """None where the real server can run, else one line that says what is missing. RuntimeError in CI."""
    absent = ceph.missing()
    if not absent:
        return None
    line = f"moto instead of a real S3 server: no {', '.join(absent)} here (tests/servers/install.sh installs them)"
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise RuntimeError(f"CI may not use {line}.")
    return line


def shared_radosgw(folder: Path, owner: int) -> S3Server:
    """The radosgw of this run: `folder` is the run's own, `owner` the process whose end ends the server too."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = folder / "ready.json"
        if not ready.exists():
            _start(folder, owner)
        told = json.loads(ready.read_text())
        return S3Server("radosgw", told["endpoint"], folder=Path(told["folder"]))


def _start(folder: Path, owner: int) -> None:
    log = folder / "supervisor.log"
    with log.open("wb") as out:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.ceph", str(folder), str(owner)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / "supervisor.pid").write_text(str(supervisor.pid))
    end = time.monotonic() + _START_SECONDS
    while not (folder / "ready.json").exists():
        if supervisor.poll() is not None or time.monotonic() > end:
            supervisor.terminate()
            raise RuntimeError(f"radosgw did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)


def stop_shared(folder: Path) -> None:
    """Stops the run's radosgw, if there is one, and waits until it is gone."""
    note = folder / "supervisor.pid"
    if not note.exists():
        return
    try:
        supervisor = os.pidfd_open(int(note.read_text()))
    except ProcessLookupError:
        return
    with os.fdopen(supervisor, "rb"):
        signal.pidfd_send_signal(supervisor, signal.SIGTERM)
        select.select([supervisor], [], [], 15)
