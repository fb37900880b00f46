"""One POST to one address: no redirect is followed, nothing of the answer is read but its status."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from typing import Final

from farm.webhooks.address import Target

_STATUS_LINE: Final = 256  # bytes of an answer that are read at most


def post(
    target: Target,
    address: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    timeout: float,
    context: ssl.SSLContext | None = None,
) -> int:
    """The status of the answer. `address` is what the target's name was resolved to; it is not resolved again.

    The certificate is checked against the target's name (with the system's authorities, or `context`). `timeout` is
    for all of it together, in seconds: who sends a byte now and then is not waited for. Raises OSError (TimeoutError
    and ssl.SSLError among it) when there is no answer, and when it is not HTTP.
    """
    deadline = time.monotonic() + timeout
    lines = [f"POST {target.path} HTTP/1.1", f"host: {target.netloc}", "user-agent: inpaint-farm", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("ascii")
    with socket.create_connection((address, target.port), timeout=timeout) as plain:
        plain.settimeout(_left(deadline))
        if target.scheme == "https":
            with (context or ssl.create_default_context()).wrap_socket(plain, server_hostname=target.host) as safe:
                return _exchange(safe, head + body, deadline)
        return _exchange(plain, head + body, deadline)


def _exchange(connection: socket.socket, request: bytes, deadline: float) -> int:
    connection.settimeout(_left(deadline))
    connection.sendall(request)
    answer = b""
    while b"\n" not in answer and len(answer) < _STATUS_LINE:
        connection.settimeout(_left(deadline))
        part = connection.recv(_STATUS_LINE - len(answer))
        if not part:
            break
        answer += part
    version, _, rest = answer.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
        raise ConnectionError("what answered does not speak HTTP")
    return int(rest[:3])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
