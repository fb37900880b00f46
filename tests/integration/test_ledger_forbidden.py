"""A Redis that does not let us in: one typed error and one sentence, at once, in every process."""

import os
import subprocess
import sys

import pytest

from farm.config import load_settings
from farm.errors import BY_CODE, QueueForbidden
from farm.ledger import Ledger, connect
from farm.schemas import InpaintJob
from producer.client import Client
from tests.servers.redis import RedisServer

PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def server(request, tmp_path_factory):
    running = RedisServer(tmp_path_factory.mktemp("forbidden"), binary=request.param).start()
    with running.client() as client:
        client.execute_command("ACL", "SETUSER", "farmer", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        client.execute_command("ACL", "SETUSER", "guest", "on", f">{PASSWORD}", "~*", "+@connection")
        client.execute_command("ACL", "SETUSER", "default", "off")
    yield running
    running.stop()


def wrong(server):
    """What is wrong → the address."""
    port = server.port
    return {
        "password": f"redis://farmer:not-the-{PASSWORD}@127.0.0.1:{port}/0",
        "no user": f"redis://127.0.0.1:{port}/0",
        "unknown user": f"redis://nobody:{PASSWORD}@127.0.0.1:{port}/0",
        "rights": f"redis://guest:{PASSWORD}@127.0.0.1:{port}/0",
        "database": f"redis://farmer:{PASSWORD}@127.0.0.1:{port}/99",
    }


KINDS = ["password", "no user", "unknown user", "rights", "database"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_is_told_at_once_and_not_to_try_again(server, tmp_path, kind):
    settings = load_settings(redis_url=wrong(server)[kind], store=f"file://{tmp_path}")
    with connect(f"redis://farmer:{PASSWORD}@127.0.0.1:{server.port}/0") as client:
        before = client.info("stats")["total_connections_received"]
        with pytest.raises(QueueForbidden, match="FARM_REDIS_URL") as refused:
            Client(settings).submit(InpaintJob(image=f"file://{tmp_path}/a.png"))
        assert client.info("stats")["total_connections_received"] - before <= 2
    assert refused.value.code == "QueueForbidden" and not refused.value.retryable
    assert PASSWORD not in str(refused.value)
    assert not list(tmp_path.rglob("*.ndjson"))  # nothing was accepted


def test_the_right_address_is_let_in(server):
    Ledger(connect(f"redis://farmer:{PASSWORD}@127.0.0.1:{server.port}/0")).ping()
    assert BY_CODE["QueueForbidden"] is QueueForbidden


@pytest.mark.parametrize(("module", "command"), [("producer", "dispatcher"), ("worker", "run")])
def test_a_process_refuses_to_start_with_that_sentence(server, tmp_path, module, command):
    environment = {
        **os.environ, "FARM_REDIS_URL": wrong(server)["password"], "FARM_STORE": f"file://{tmp_path}",
        "FARM_METRICS_PORT": "0", "FARM_METRICS_HOST": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", module, command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "QueueForbidden" in line]
    assert "FARM_REDIS_URL" in line and PASSWORD not in done.stderr
    assert "Traceback" not in done.stderr
