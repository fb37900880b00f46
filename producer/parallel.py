"""Many calls at once over an iterable that is never read far ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mapped(call: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """`call` of every item, in their order; at most `ahead` items are read beyond what was taken."""
    with ThreadPoolExecutor(threads) as pool:
        flying: deque[Future[R]] = deque()
        try:
            for item in items:
                flying.append(pool.submit(call, item))
                if len(flying) >= ahead:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()
