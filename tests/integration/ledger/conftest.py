"""The index on real servers: Valkey, and Debian's Redis 7.0."""

import pytest

from farm.ledger import Batches, Ledger, Window, connect
from tests.servers.redis import RedisServer


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def server(request, tmp_path_factory):
    running = RedisServer(tmp_path_factory.mktemp("ledger"), binary=request.param).start()
    yield running
    running.stop()


@pytest.fixture
def client(server):
    with connect(server.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def ledger(client):
    return Ledger(client)


@pytest.fixture
def window(client):
    return Window(client)


@pytest.fixture
def batches(client):
    return Batches(client)
