"""A TCP proxy that misbehaves as it is told: it stands before Redis and before the S3 server.

It runs on a thread of its own. Its two links, `up` (client to server) and `down` (server to client), are plain
attributes that may be changed at any time, from any thread; a change applies from the next bytes on.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16
_HTTP_REQUEST = re.compile(rb"(GET|PUT|HEAD|POST|DELETE) /")
SLOW_DOWN = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Link:
    """What is wrong with one direction; nothing, as it is made."""

    delay: float = 0.0  # seconds that bytes are late
    bandwidth: float = math.inf  # bytes a second
    cut: float = 0.0  # the chance that bytes reset their connection instead of passing
    swallow: bool = False  # half-open: what comes is taken and never arrives, on that connection ever after
    answer: bytes = b""  # what an HTTP request gets instead of the server's answer …
    answer_chance: float = 0.0  # … with this chance


class Proxy:
    """Listens on `port` and passes everything to 127.0.0.1:`target`, which may be away. Use it in a `with` block."""

    def __init__(self, target: int, *, seed: int = 0):
        self.up, self.down = Link(), Link()
        self.refusing = False  # new connections are reset at once
        self.cuts = self.answers = 0
        self.port = 0
        self._target, self._random = target, random.Random(seed)
        self._clients: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy to {target}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def heal(self) -> None:
        """Nothing is wrong any more. Connections that swallowed bytes stay as dead as they are: cut them."""
        self.up, self.down, self.refusing = Link(), Link(), False

    def cut(self, share: float = 1.0) -> int:
        """Reset this share of the connections now, each by chance; how many were."""
        return asyncio.run_coroutine_threadsafe(self._cut(share), self._loop).result(10)

    @property
    def connections(self) -> int:
        return len(self._clients)

    async def _cut(self, share: float) -> int:
        chosen = [client for client in self._clients if self._random.random() < share]
        for client in chosen:
            client.transport.abort()
        return len(chosen)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self._cut(1.0)
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refusing:
                raise ConnectionRefusedError
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._clients.add(writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, server_writer, "up", writer))
                both.create_task(self._pass(server_reader, writer, "down", writer))
        except* OSError:
            pass  # one side went away: so does the other
        except* asyncio.CancelledError:
            pass  # the proxy stops; asyncio's own callback would log a cancelled connection as an error
        finally:
            self._clients.discard(writer)
            writer.transport.abort()
            server_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str, client: asyncio.StreamWriter
    ) -> None:
        swallowing = False
        while data := await reader.read(_CHUNK):
            link: Link = getattr(self, way)
            swallowing = swallowing or link.swallow
            if swallowing:
                continue
            if link.cut and self._random.random() < link.cut:
                self.cuts += 1
                raise ConnectionResetError
            if link.answer_chance and _HTTP_REQUEST.match(data) and self._random.random() < link.answer_chance:
                self.answers += 1
                await self._answer(reader, client, link.answer)
            for part in _parts(data, link.bandwidth):
                if pause := link.delay + len(part) / link.bandwidth:
                    await asyncio.sleep(pause)
                writer.write(part)
                await writer.drain()
        writer.write_eof()

    async def _answer(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, answer: bytes) -> None:
        """Answer in the server's place and hang up, but only when the client has: a reset would outrun the answer."""
        client.write(answer)
        client.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while await reader.read(_CHUNK):
                    pass
        raise ConnectionResetError


def _parts(data: bytes, bandwidth: float) -> Iterator[bytes]:
    """A tenth of a second's worth each, so that a slow link trickles."""
    size = len(data) if math.isinf(bandwidth) else max(1, int(bandwidth / 10))
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]
