"""The connection to Redis, and its errors in the farm's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.exceptions import AuthenticationWrongNumberOfArgsError, AuthorizationError

from farm.errors import Misconfigured, QueueForbidden, QueueUnavailable

_FORBIDDEN = (
    redis.AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    redis.exceptions.NoPermissionError,
)
# What has no class of its own: a database that there is not, rights that a script lacks.
_FORBIDDEN_WORDS = re.compile(r"DB index|SELECT is not allowed|ACL failure|NOPERM|NOAUTH|WRONGPASS", re.IGNORECASE)


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
    """What Redis' client raises becomes QueueUnavailable, worth another try, or QueueForbidden, which is not."""
    try:
        yield
    except _FORBIDDEN as error:
        raise _forbidden(error) from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueUnavailable(f"Redis does not answer ({type(error).__name__}); check FARM_REDIS_URL.") from error
    except redis.ResponseError as error:  # read-only, out of memory, its disk full, still loading
        if _FORBIDDEN_WORDS.search(str(error)):
            raise _forbidden(error) from error
        raise QueueUnavailable(f"Redis refused: {str(error)[:120]}; try later.") from error


def _forbidden(error: redis.RedisError) -> QueueForbidden:
    return QueueForbidden(
        f"Redis does not let us in ({str(error)[:120]}); check user, password and database in FARM_REDIS_URL, and that "
        "user's rights."
    )
