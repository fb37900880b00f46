"""The connection to Redis, and its errors in the farm's words.

Its client takes a tenth of a second to import, more beside OpenTelemetry: only who connects is to wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from farm.errors import Misconfigured, QueueForbidden, QueueUnavailable

if TYPE_CHECKING:
    from redis import Redis, RedisError

# What has no class of its own: a database that there is not, rights that a script lacks.
_FORBIDDEN_WORDS = re.compile(r"DB index|SELECT is not allowed|ACL failure|NOPERM|NOAUTH|WRONGPASS", re.IGNORECASE)


def connect(url: str) -> Redis:
    """A client that notices a dead peer within seconds. Raises Misconfigured for an address that is none."""
    from redis import Redis

    try:
        return Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=True
        )
    except ValueError:  # its message may hold a part of the password
        raise Misconfigured("FARM_REDIS_URL cannot be read; write redis://host:6379/0.") from None


@contextmanager
def mapped() -> Iterator[None]:
    """What Redis' client raises becomes QueueUnavailable, worth another try, or QueueForbidden, which is not."""
    from redis import exceptions

    try:
        yield
    except (
        exceptions.AuthenticationError,
        exceptions.AuthenticationWrongNumberOfArgsError,
        exceptions.AuthorizationError,
        exceptions.NoPermissionError,
    ) as error:
        raise _forbidden(error) from error
    except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
        raise QueueUnavailable(f"Redis does not answer ({type(error).__name__}); check FARM_REDIS_URL.") from error
    except exceptions.ResponseError as error:  # read-only, out of memory, its disk full, still loading
        if _FORBIDDEN_WORDS.search(str(error)):
            raise _forbidden(error) from error
        raise QueueUnavailable(f"Redis refused: {str(error)[:120]}; try later.") from error


def _forbidden(error: RedisError) -> QueueForbidden:
    return QueueForbidden(
        f"Redis does not let us in ({str(error)[:120]}); check user, password and database in FARM_REDIS_URL, and that "
        "user's rights."
    )
