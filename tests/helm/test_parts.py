"""The scripts that the chart ships, run for real: the start of the built-in Redis, and the pod of `helm test`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from producer.process import Process, free_port
from tests.helm.chart import CHART, Object, only, render, values_of
from tests.servers.redis import server_binary
from tests.servers.scripted import Answer, Request, scripted

ROLES = ("sdk", "worker", "dispatcher")


def container_of(item: Object) -> Object:
    found: Object = item["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The built-in Redis as its container starts it, on this machine's paths."""
    objects = render(values_of("values-trial"))
    for name, text in only(objects, "ConfigMap", "-redis")["data"].items():
        (tmp_path / name).write_text(text)
    for folder in ("passwords", "run", "data", "bin"):
        (tmp_path / folder).mkdir()
    for role in ROLES:
        (tmp_path / "passwords" / role).write_text(f"{role}-secret\n")
    (tmp_path / "bin" / "valkey-server").symlink_to(server_binary())
    container = container_of(only(objects, "StatefulSet", "-redis"))
    assert container["command"] == ["sh", "/etc/redis/start.sh"]
    found = free_port()
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    here = {
        "PASSWORDS": str(tmp_path / "passwords"),
        "ACL_TEMPLATE": str(tmp_path / "users.acl"),
        "RUN_DIR": str(tmp_path / "run"),
        "DATA_DIR": str(tmp_path / "data"),
        "PORT": str(found),
    }
    assert here.keys() == given.keys() - {"MAXMEMORY"}
    environment = {**given, **here, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    process = Process(["sh", str(tmp_path / "start.sh")], tmp_path / "log", environment)
    try:
        process.wait_until(lambda: _answers(found), 20)
        yield found
    finally:
        process.stop(grace=5)


def _answers(port: int) -> bool:
    try:
        return bool(_client(port, "worker").ping())
    except redis.ConnectionError:
        return False


def _client(port: int, role: str) -> redis.Redis:
    return redis.Redis(port=port, username=role, password=f"{role}-secret", decode_responses=True, retry=None)


def test_the_built_in_redis_lets_in_its_roles_and_nobody_else(port: int, tmp_path: Path) -> None:
    for role in ROLES:
        assert _client(port, role).ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            _client(port, role).flushall()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, username=role, password="0" * 64, retry=None).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port, retry=None).ping()
    assert (tmp_path / "run" / "users.acl").stat().st_mode & 0o077 == 0
    _client(port, "dispatcher").set("farm:x", "1")
    assert (tmp_path / "data" / "appendonlydir").is_dir()
    memory = _client(port, "sdk").info("memory")
    assert (memory["maxmemory"], memory["maxmemory_policy"]) == (1024**3, "noeviction")


def _test_pod(url: str) -> subprocess.CompletedProcess[str]:
    pod = only(render(values_of("values-trial")), "Pod")["spec"]["containers"][0]
    assert pod["command"][:2] == ["python", "-c"]
    assert pod["command"][2].strip() == (CHART / "files" / "helm-test.py").read_text().strip()
    given = {entry["name"]: entry["value"] for entry in pod["env"]}
    return subprocess.run(
        [sys.executable, *pod["command"][1:]],
        env={**given, "DISPATCHER": url, "SECONDS_TO_WAIT": "2"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def _plain(text: str) -> Answer:
    return Answer(200, {"Content-Length": str(len(text))}, [text.encode()])


def test_helm_test_looks_until_it_meets_the_dispatcher_that_leads() -> None:
    seen: list[str] = []

    def answer(request: Request) -> Answer:
        seen.append(request.path)
        leads = seen.count("/metrics") > 1
        return _plain('farm_backlog_gpu_seconds{growth="true",model="sd15-inpaint"} 12.5\n' if leads else "other 1\n")

    with scripted(answer) as url:
        done = _test_pod(url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'farm_backlog_gpu_seconds{growth="true",model="sd15-inpaint"} 12.5\n'
    assert seen == ["/readyz", "/metrics"] * 2


def test_helm_test_fails_when_no_dispatcher_is_ready_or_leads() -> None:
    def not_ready(request: Request) -> Answer:
        return Answer(503, {"Content-Length": "0"})

    with scripted(not_ready) as url:
        done = _test_pod(url)
    assert done.returncode == 1
    assert "503" in done.stderr
    with scripted(lambda request: _plain("other 1\n")) as url:
        done = _test_pod(url)
    assert done.returncode == 1
    assert "does not lead" in done.stderr
