"""`Index`: the farm's Redis as an SDK uses it. `producer.testing` has one without a Redis."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from farm import keys
from farm.errors import FarmFull
from farm.ledger import Batches, JobRef, Ledger, Window
from farm.ledger.connection import mapped

if TYPE_CHECKING:
    from redis import Redis

_ROOM_SECONDS = 1.0  # Redis is asked for its memory at most so often


class Index:
    """Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, client: Redis):
        self.ledger, self.batches = Ledger(client), Batches(client)
        self._redis, self._room_seen = client, -_ROOM_SECONDS

    def check_room(self, full_at: float) -> None:
        """Raises FarmFull when Redis is nearly out of memory: a row that does not fit would be an error later."""
        if time.monotonic() - self._room_seen <= _ROOM_SECONDS:
            return
        with mapped():
            memory = cast("dict[str, int]", self._redis.info("memory"))
        most, used = memory.get("maxmemory", 0), memory.get("used_memory", 0)
        if most and used > full_at * most:
            raise FarmFull(f"Redis has {used:,} of {most:,} bytes in use; try later, or give it more memory.")
        self._room_seen = time.monotonic()

    def unfinished(self, refs: Sequence[JobRef]) -> list[bool]:
        """Whether each job has a row: it waits or runs. One that was not indexed yet has none, either."""
        with mapped():
            pipe: Any = self._redis.pipeline(transaction=False)  # its stubs type each call as its answer
            for ref in refs:
                pipe.hget(keys.job_row(ref.job_id), "state")
            return [state is not None for state in pipe.execute()]

    def spent(self, model: str) -> tuple[int, float]:
        """Jobs of a model that ended since Redis began, and the seconds that devices spent on them."""
        window = Window(self._redis)
        return window.finished(model), window.depths(model).spent
