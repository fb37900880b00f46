"""`Window`: what the dispatcher takes from the index, and what it can see of the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from farm import keys
from farm.ledger import scripts
from farm.ledger.connection import mapped
from farm.ledger.records import ROW_FIELDS, JobRef, worker_of

if TYPE_CHECKING:
    from redis import Redis


@dataclass(frozen=True)
class Due:
    """`batches`: (tenant, batch) that want a look. `next_in`: seconds until something else is due, None: nothing.
    `jobs`: how many became ready."""

    batches: list[tuple[str, str]]
    next_in: float | None
    jobs: int


@dataclass(frozen=True)
class Depths:
    """Jobs of one model; `oldest`: seconds that the oldest ready one waits; `spent`: seconds on those that ended.

    `urgent`: those of all these jobs that are of at least the priority that was asked about.
    """

    ready: int
    hinted: int
    running: int
    oldest: float
    spent: float
    urgent: int


class Window:
    """Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, client: Redis):
        self._redis = client
        self._take_due = client.register_script(scripts.PRELUDE + scripts.TAKE_DUE)
        self._take_ready = client.register_script(scripts.PRELUDE + scripts.TAKE_READY)

    def wait(self, seconds: float) -> None:
        """Sleep until somebody wakes the dispatcher, at most so long."""
        with mapped():
            self._redis.blpop([keys.WAKE], timeout=max(0.01, min(seconds, 5.0)))

    def take_due(self, *, limit: int, look_again_in: float) -> Due:
        """Make ready what is due; say which batches are."""
        with mapped():
            batches, next_in, jobs = self._take_due(args=[limit, look_again_in])
        pairs = [cast("tuple[str, str]", tuple(name.split("/", 1))) for name in batches]
        return Due(pairs, float(next_in) if float(next_in) >= 0 else None, int(jobs))

    def models(self) -> list[str]:
        """Models that have ready jobs."""
        with mapped():
            return sorted(cast("set[str]", self._redis.smembers(keys.READY)))

    def take_ready(self, model: str, *, window: int, limit: int, quantum: int, look_again_in: float) -> list[JobRef]:
        """Jobs to hint now, at most `limit` and so many that `window` are hinted and not claimed.

        The tenant that has had the least of its weighted share goes first, `quantum` jobs at a time. A job that is
        not claimed within `look_again_in` seconds (doubled each time) becomes ready again.
        """
        with mapped():
            rows = self._take_ready(args=[model, window, limit, quantum, look_again_in])
        return [JobRef.from_row(row) for row in rows]

    def finished(self, model: str) -> int:
        """Jobs of a model that ended so far; begins anew when Redis does."""
        with mapped():
            return int(cast("str | None", self._redis.get(keys.FINISHED + model)) or 0)

    def depths(self, model: str, *, priority: int = 0) -> Depths:
        """How many jobs of a model wait where, and how many of them are of at least this priority."""
        with mapped():
            tenants = cast("list[str]", self._redis.zrange(keys.TENANTS + model, 0, -1))
            pipe: Any = self._redis.pipeline(transaction=False)  # its stubs type each call as its answer
            pipe.time().get(keys.PACE + model).zrange(keys.HINTED + model, 0, -1).smembers(keys.RUNNING + model)
            for tenant in tenants:
                queue = f"{keys.READY}{model}:{tenant}"
                pipe.zcard(queue).zcount(queue, "-inf", f"({scripts.first_place(priority - 1)}").zrange(queue, 0, 0)
            (seconds, micros), pace, hinted, running, *ready = pipe.execute()
            for head in ready[2::3]:
                pipe.hget(keys.job_row(head[0] if head else ""), "queued_at")
            for job in (*hinted, *running):
                pipe.hget(keys.job_row(job), "priority")
            rows = pipe.execute()
        since = [float(at) for at in rows[: len(tenants)] if at]
        oldest = max(0.0, seconds + micros / 1e6 - min(since)) if since else 0.0
        urgent = sum(ready[1::3]) + sum(int(of or 0) >= priority for of in rows[len(tenants) :])
        return Depths(sum(ready[::3]), len(hinted), len(running), oldest, float(pace or 0.0), urgent)

    def holders(self, model: str) -> Counter[str]:
        """Worker → jobs of a model that it holds, as they named themselves to their ledgers."""
        with mapped():
            running = cast("set[str]", self._redis.smembers(keys.RUNNING + model))
            pipe: Any = self._redis.pipeline(transaction=False)
            for job in running:
                pipe.hget(keys.job_row(job), "owner")
            return Counter(worker_of(owner) for owner in pipe.execute() if owner)

    def lead(self, name: str, *, seconds: float) -> bool:
        """Whether the dispatcher `name` leads for the next seconds: the first that asks, until it falls silent."""
        with mapped():
            if self._redis.set(keys.LEADER, name, nx=True, px=int(1000 * seconds)):
                return True
            if self._redis.get(keys.LEADER) != name:
                return False
            self._redis.pexpire(keys.LEADER, int(1000 * seconds))
            return True

    def set_weights(self, weights: Mapping[str, float]) -> None:
        with mapped():
            self._redis.delete(keys.WEIGHTS)
            if weights:
                self._redis.hset(keys.WEIGHTS, mapping={tenant: weight for tenant, weight in weights.items()})


assert ROW_FIELDS[-1] == "priority"  # the scripts take the last field for it
