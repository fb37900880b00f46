"""A private Ceph of one monitor and one in-memory disk with radosgw before it: a real S3 server, up in 2 to 6 seconds.

Run as a program it serves until its owner ends: `python -m tests.servers.ceph FOLDER OWNER_PID` writes
FOLDER/ready.json and stops when the process OWNER_PID is gone, or on SIGTERM. Nothing of it can outlive the tests.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from producer.process import Process, free_port, listening

BINARIES = ("ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "osdmaptool", "radosgw", "radosgw-admin")
ACCESS_KEY, SECRET_KEY = "FARMKEY", "FARMSECRET"
_START_SECONDS = 60  # one step, on a machine that is busy with other tests

_GLOBAL = {
    "auth cluster required": "cephx",
    "auth service required": "cephx",
    "auth client required": "cephx",
    "public addr": "127.0.0.1",
    "ms bind ipv4": "true",
    "mon initial members": "a",
    "mon data avail crit": "1",  # a test machine's disk may be nearly full; nothing is stored there
    "mon allow pool size one": "true",
    "mon max pg per osd": "2000",
    "osd pool default size": "1",
    "osd pool default min size": "1",
    "osd pool default pg num": "4",
    "osd pool default pgp num": "4",
    "osd pool default pg autoscale mode": "off",
    "osd crush chooseleaf type": "0",
    "osd objectstore": "memstore",
    "memstore device bytes": str(2 << 30),
    # A monitor gathers changes for a second before it writes them; start-up is a chain of a dozen such changes.
    "paxos propose interval": "0.05",
    "paxos min wait": "0.01",
}


def missing() -> list[str]:
    """The programs that this needs and this machine lacks."""
    return [name for name in BINARIES if shutil.which(name) is None]


class Ceph:
    """One cluster in `folder`. `start` gives the S3 endpoint."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes: list[Process] = []
        self.conf = folder / "ceph.conf"

    def start(self) -> str:
        gateway, monitor, fsid = free_port(), free_port(), str(uuid.uuid4())
        self._prepare(gateway, monitor, fsid)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--osdmap", "osdmap", "--keyring", "keyring")
        self._serve("ceph-mon", "-i", "a").wait_until(lambda: listening(monitor), _START_SECONDS)
        self._run("ceph-osd", "-i", "0", "--mkfs")
        osd = self._serve("ceph-osd", "-i", "0")
        try:
            self.make_user("farm", ACCESS_KEY, SECRET_KEY)  # waits for the disk, and makes the gateway's pools
        except RuntimeError as error:
            raise RuntimeError(f"{error}\nceph-osd says:\n{osd.tail()}") from error
        self._serve("radosgw", "-n", "client.admin").wait_until(lambda: listening(gateway), _START_SECONDS)
        return f"http://127.0.0.1:{gateway}"

    def make_user(self, name: str, access_key: str, secret_key: str) -> None:
        """A user who may make buckets, and sees nobody else's without a policy. Also of a cluster that runs already."""
        user = (f"--uid={name}", f"--display-name={name}", f"--access-key={access_key}", f"--secret-key={secret_key}")
        self._run("radosgw-admin", "user", "create", *user)

    def stop(self) -> None:
        """At once: there is nothing to keep, and an orderly end of radosgw takes seconds."""
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()

    def _prepare(self, gateway: int, monitor: int, fsid: str) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("mon", "osd/0", "rgw", "run", "log"):
            (self.folder / name).mkdir(parents=True)
        settings = {
            **_GLOBAL,
            "fsid": fsid,
            "mon host": f"[v2:127.0.0.1:{monitor}]",
            "mon data": f"{self.folder}/mon/$id",
            "osd data": f"{self.folder}/osd/$id",
            "keyring": f"{self.folder}/keyring",
            "run dir": f"{self.folder}/run",
            "log file": f"{self.folder}/log/$name.log",
            "admin socket": f"{self.folder}/run/$name.$pid.asok",
        }
        lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
        lines += ["[client]", f"rgw frontends = beast endpoint=127.0.0.1:{gateway}", f"rgw data = {self.folder}/rgw"]
        self.conf.write_text("\n".join(lines) + "\n")
        # The monitor takes keys and disk map from these files when it is made, so that no client has to tell it later.
        for name, caps in (("mon.", "mon"), ("osd.0", "mon osd"), ("client.admin", "mon osd mgr")):
            granted = [word for cap in caps.split() for word in ("--cap", cap, "allow *")]
            create = [] if (self.folder / "keyring").exists() else ["--create-keyring"]
            self._run("ceph-authtool", "keyring", *create, "--gen-key", "-n", name, *granted)
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", fsid, "monmap")
        self._run("osdmaptool", "osdmap", "--createsimple", "1")

    def _env(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.conf)}

    def _run(self, *command: str) -> None:
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=self._env(), capture_output=True, timeout=_START_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not end within {_START_SECONDS} s.") from None
        if done.returncode:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}:\n{output[-3000:]}")

    def _serve(self, *command: str) -> Process:
        process = Process([*command, "-f"], self.folder / "log" / f"{command[0]}.out", self._env())
        self.processes.append(process)
        return process


def main(folder: Path, owner: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gone = os.pidfd_open(owner)
    cluster = Ceph(folder / "ceph")
    try:
        for attempt in (1, 2, 3):
            try:
                endpoint = cluster.start()
                break
            except RuntimeError as error:  # a port that was free may have been taken meanwhile
                cluster.stop()
                print(f"attempt {attempt}: {error}", file=sys.stderr, flush=True)
        else:
            sys.exit(1)
        draft = folder / "ready.json.new"
        draft.write_text(json.dumps({"endpoint": endpoint, "folder": str(cluster.folder)}))
        draft.rename(folder / "ready.json")
        poll = select.poll()
        poll.register(gone, select.POLLIN)
        poll.poll()
        shutil.rmtree(folder, ignore_errors=True)  # the owner was killed, else it would have stopped us
    finally:
        cluster.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
