"""The connection to Redis, and its errors in the farm's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from farm.errors import Misconfigured, QueueUnavailable


def connect(url: str) -> redis.Redis:
    """A client that notices a dead peer within seconds. Raises Misconfigured for an address that is none."""
    try:
        return redis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=True
        )
    except ValueError:  # its message may hold a part of the password
        raise Misconfigured("FARM_REDIS_URL cannot be read; write redis://host:6379/0.") from None


@contextmanager
def mapped() -> Iterator[None]:
    """Whatever Redis' client raises becomes QueueUnavailable, which is worth another try."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueUnavailable(f"Redis does not answer ({type(error).__name__}); check FARM_REDIS_URL.") from error
    except redis.ResponseError as error:  # read-only, out of memory, its disk full, still loading
        raise QueueUnavailable(f"Redis refused: {str(error)[:120]}; try later.") from error
