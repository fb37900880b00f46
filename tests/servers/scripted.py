"""An HTTP server that answers as a test tells it to: the S3 servers that lie, stall or break off."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Answer(NamedTuple):
    """The body is sent as it is, chunk by chunk, whatever the headers say; `cut` resets the connection after it."""

    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    body: Iterable[bytes] = ()
    cut: bool = False


def error(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, [body])


@contextmanager
def scripted(answer: Callable[[Request], Answer], *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that calls `answer` for every request, from many threads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = answer(
                Request(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}, body)
            )
            self.close_connection = True
            try:
                self.send_response(told.status)
                for name, value in {"ETag": '"e"', "Connection": "close", **told.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for chunk in told.body:
                    self.wfile.write(chunk)
                self.wfile.flush()
                if told.cut:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()
            except OSError:
                pass  # the client has had enough, which is what some tests are about

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_PATCH = respond

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
