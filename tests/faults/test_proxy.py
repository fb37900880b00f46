"""The proxy does to a connection what it is told, and nothing else."""

import http.client
import os
import socket
import socketserver
import threading
import time

import pytest

from tests.faults.proxy import SLOW_DOWN, Link, Proxy
from tests.servers.scripted import Answer, scripted


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture
def echo():
    with Server(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(echo):
    with Proxy(echo) as running:
        yield running


def connect(proxy):
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def exchange(connection, data=b"hello"):
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionResetError
        got += more
    return got


def works(connection):
    with connection:
        try:
            return bool(exchange(connection))
        except ConnectionError:
            return False


def test_it_passes_what_it_gets(proxy):
    data = os.urandom(1 << 20)
    with connect(proxy) as connection:
        reader = threading.Thread(target=connection.sendall, args=(data,))
        reader.start()
        got = b""
        while len(got) < len(data):
            got += connection.recv(1 << 16)
        reader.join()
        assert got == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""


def test_bytes_are_late_by_the_delay_of_each_direction(proxy):
    with connect(proxy) as connection:
        exchange(connection)
        proxy.up.delay, proxy.down.delay = 0.1, 0.15
        begin = time.monotonic()
        exchange(connection)
        assert time.monotonic() - begin >= 0.25
        proxy.up.delay = 3600.0
        proxy.heal()
        exchange(connection)


def test_the_bandwidth_of_a_direction_is_kept(proxy):
    with connect(proxy) as connection:
        proxy.down.bandwidth = 20_000
        begin = time.monotonic()
        assert exchange(connection, b"x" * 10_000) == b"x" * 10_000
        assert time.monotonic() - begin >= 0.4


def test_all_connections_are_cut_and_new_ones_work(proxy):
    with connect(proxy) as first, connect(proxy) as second:
        exchange(first), exchange(second)
        assert proxy.connections == 2
        assert proxy.cut() == 2
        for connection in (first, second):
            with pytest.raises(ConnectionError):
                exchange(connection)
    with connect(proxy) as third:
        assert exchange(third) == b"hello"


def test_a_share_of_the_connections_is_cut(proxy):
    connections = [connect(proxy) for _ in range(40)]
    for connection in connections:
        exchange(connection)
    cut = proxy.cut(0.25)
    assert 0 < cut < 40
    assert sum(not works(connection) for connection in connections) == cut


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_share_of_the_bytes_cuts_its_connection(proxy, way):
    setattr(proxy, way, Link(cut=0.3))
    outcomes = []
    for _ in range(60):
        with connect(proxy) as connection:
            try:
                exchange(connection)
                outcomes.append(True)
            except ConnectionError:
                outcomes.append(False)
    assert 5 < outcomes.count(False) < 35
    assert proxy.cuts == outcomes.count(False)


def test_a_half_open_connection_takes_all_and_gives_nothing_even_afterwards(proxy):
    with connect(proxy) as connection, connect(proxy) as other:
        exchange(connection), exchange(other)
        connection.settimeout(0.3)
        proxy.down.swallow = True
        with pytest.raises(TimeoutError):
            exchange(connection)
        proxy.heal()
        with pytest.raises(TimeoutError):
            exchange(connection)
        assert exchange(other) == b"hello"  # it never said anything while replies were dropped


def test_it_refuses_and_survives_a_server_that_is_away(proxy, echo):
    proxy.refusing = True
    with pytest.raises(ConnectionError), connect(proxy) as connection:
        exchange(connection)
    proxy.refusing = False
    with connect(proxy) as connection:
        assert exchange(connection) == b"hello"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = Proxy(unused.getsockname()[1])
    with nowhere, pytest.raises(ConnectionError), connect(nowhere) as connection:
        exchange(connection)


def test_it_answers_a_share_of_http_requests_itself():
    with (
        scripted(lambda request: Answer(200, {"Content-Length": "2"}, [b"ok"])) as url,
        Proxy(int(url.rsplit(":", 1)[1]), seed=1) as proxy,
    ):
        proxy.up = Link(answer=SLOW_DOWN, answer_chance=0.5)
        statuses = []
        for _ in range(40):
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
            connection.request("PUT", "/bucket/key", body=b"x" * 100_000)
            statuses.append(connection.getresponse().status)
            connection.close()
        assert set(statuses) == {200, 503}
        assert statuses.count(503) == proxy.answers


def test_the_same_seed_does_the_same(echo):
    def outcomes():
        with Proxy(echo, seed=7) as proxy:
            proxy.up.cut = 0.5
            for _ in range(20):
                with connect(proxy) as connection:
                    try:
                        exchange(connection)
                        yield True
                    except ConnectionError:
                        yield False

    assert list(outcomes()) == list(outcomes())
