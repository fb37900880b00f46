"""`/healthz` (the process lives), `/readyz` (it takes jobs) and `/metrics`, on one small HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from farm import metrics
from farm.errors import Misconfigured


class Health:
    """Serves from a daemon thread once started. `ready` is what /readyz answers; `refresh` runs before a scrape."""

    def __init__(self, host: str, port: int, *, refresh: Callable[[], None]):
        self.ready = False
        self._refresh = refresh
        self._metrics = make_wsgi_app(metrics.REGISTRY)
        try:
            self._server = make_server(host, port, self._answer, _Server, _Quiet)
        except OSError as error:
            why = error.strerror
            raise Misconfigured(f"Cannot serve metrics on {host}:{port} ({why}); set FARM_METRICS_PORT.") from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            self._refresh()
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        status, body = {
            "/healthz": ("200 OK", b"ok\n"),
            "/readyz": ("200 OK", b"ready\n") if self.ready else ("503 Service Unavailable", b"not ready\n"),
        }.get(path, ("404 Not Found", b"there are /healthz, /readyz and /metrics\n"))
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds; a client that never finishes its request holds no thread for ever

    def log_message(self, format: str, *args: Any) -> None:  # a probe a second is no news
        pass
