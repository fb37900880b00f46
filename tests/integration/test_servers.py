"""The servers of the tests themselves: they keep what they are trusted with, and never outlive their run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from producer.process import Process, free_port, listening
from tests.servers import ceph, s3
from tests.servers.redis import RedisServer, server_binary


@pytest.fixture(params=["valkey", "redis-server"])
def server(request, tmp_path):
    if request.param == "redis-server" and s3.why_moto():
        request.param = "valkey"  # Debian's packages are not here; the header of the run says so
    server = RedisServer(tmp_path / "redis", binary=request.param, appendfsync="always").start()
    yield server
    server.stop()


def test_redis_keeps_what_it_acknowledged_through_a_kill(server):
    with server.client() as client:
        client.set("a", 1)
        server.kill()
    with server.start().client() as client:
        assert client.get("a") == b"1"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_redis_stops_even_when_paused(server):
    server.pause()
    server.stop()
    assert not listening(server.port)


def test_each_test_finds_redis_empty(redis_url, redis_server):
    with redis_server.client() as client:
        assert client.dbsize() == 0


def test_an_unknown_redis_is_told_in_one_line():
    with pytest.raises(RuntimeError, match="is not installed"):
        server_binary("no-such-redis")


def test_a_server_that_dies_at_once_shows_its_log(tmp_path):
    process = Process([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3.*the reason"):
        process.wait_until(lambda: False, 20)


def test_a_server_dies_with_who_started_it(tmp_path):
    port = free_port()
    code = f"""
import os, signal, sys
from pathlib import Path
from producer.process import Process, listening
command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
Process(command, Path({str(tmp_path / "log")!r})).wait_until(lambda: listening({port}), 20)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert gone_within(5, lambda: listening(port))


def gone_within(seconds: float, there) -> bool:
    end = time.monotonic() + seconds
    while there() and time.monotonic() < end:
        time.sleep(0.05)
    return not there()


def test_without_radosgw_one_line_says_so_and_ci_fails(monkeypatch):
    monkeypatch.setattr(ceph, "missing", lambda: ["radosgw"])
    monkeypatch.delenv("CI", raising=False)
    line = s3.why_moto()
    assert "moto instead" in line and "radosgw" in line and "\n" not in line
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="CI may not use moto"):
        s3.why_moto()
    monkeypatch.setattr(ceph, "missing", list)
    assert s3.why_moto() is None


@pytest.mark.parametrize("how", ["stopped", "orphaned"])
def test_the_shared_server_is_started_once_and_ends_with_its_run(tmp_path, how):
    if s3.why_moto():
        return  # there is no real server here to share; the header of the run says so
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = "import sys; from pathlib import Path; from tests.servers.s3 import shared_radosgw\n"
    code += "print(shared_radosgw(Path(sys.argv[1]), int(sys.argv[2])).endpoint)"
    try:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path), str(owner.pid)],
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        endpoints = {worker.communicate(timeout=120)[0].strip() for worker in workers}
        assert endpoints == {json.loads((tmp_path / "ready.json").read_text())["endpoint"]}
        port = int(endpoints.pop().rsplit(":", 1)[1])
        assert listening(port)  # although both workers have ended
        supervisor = int((tmp_path / "supervisor.pid").read_text())
        if how == "stopped":
            s3.stop_shared(tmp_path)
            assert not listening(port)
        else:
            owner.kill()
            owner.wait()
            assert gone_within(10, lambda: listening(port))
            assert gone_within(5, tmp_path.exists)
        assert gone_within(5, lambda: Path(f"/proc/{supervisor}").exists())
    finally:
        owner.kill()
        owner.wait()
        s3.stop_shared(tmp_path)


def test_this_runs_servers_are_stopped_by_their_owner():
    assert int(os.environ["FARM_TEST_OWNER"]) in (os.getpid(), os.getppid())
