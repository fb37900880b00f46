"""`Batches`: accepted work that is not all indexed yet, and the marks that whole batches carry."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from farm import keys
from farm.errors import QuotaExceeded
from farm.ledger import batch_scripts, scripts
from farm.ledger.connection import mapped
from farm.ledger.records import BatchRecord, JobRef
from farm.schemas import BatchFooter
from farm.states import JobState

if TYPE_CHECKING:
    from redis import Redis

_PAGE = 1000


class Batches:
    """Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, client: Redis):
        self._redis = client
        self._scripts = {
            name: client.register_script(scripts.PRELUDE + text)
            for name, text in (
                ("announce", batch_scripts.ANNOUNCE), ("open", batch_scripts.OPEN_BATCH),
                ("index", batch_scripts.INDEX_SHARD), ("close", batch_scripts.CLOSE_BATCH),
                ("pause", batch_scripts.PAUSE), ("cancel", batch_scripts.CANCEL),
                ("uncount", batch_scripts.UNCOUNT), ("end_walk", batch_scripts.END_WALK),
            )
        }  # fmt: skip

    def _run(self, script: str, *args: Any) -> int:
        with mapped():
            return int(self._scripts[script](args=args))

    # What producers say

    def announce(self, tenant: str, batch: str, *, look_again_in: float, quota: int = 0) -> None:
        """Work is about to be accepted: without another word somebody looks into the store after `look_again_in`.

        Raises QuotaExceeded when the tenant has `quota` jobs queued already (0: no limit).
        """
        if not self._run("announce", tenant, batch, look_again_in, quota):
            raise QuotaExceeded(f"Tenant {tenant!r} has {quota:,} jobs queued, as many as it may; try later.")

    def open(
        self, footer: BatchFooter, *, next_shard: int = 0, look_again_in: float, retries: int = 0,
        counts: Mapping[str, int] | None = None,
    ) -> bool:  # fmt: skip
        """All of a batch is in the store; its shards from `next_shard` on are indexed as there is room.

        `retries` of it are there, too. `counts` (state → jobs) says how those jobs ended that need nothing more. False
        if it is open already.
        """
        return self._open(footer, next_shard, look_again_in, retries, counts or {}, reopened=False)

    def reopen(self, footer: BatchFooter, *, look_again_in: float, retries: int) -> bool:
        """The same from the store alone: jobs of it may have ended that nobody has counted. Whoever indexes a shard
        looks for their results first."""
        return self._open(footer, 0, look_again_in, retries, {}, reopened=True)

    def _open(
        self, footer: BatchFooter, next_shard: int, look_again_in: float, retries: int, counts: Mapping[str, int], *,
        reopened: bool,
    ) -> bool:  # fmt: skip
        ended = {state: count for state, count in counts.items() if count}
        return bool(
            self._run(
                "open", footer.tenant, footer.batch_id, footer.jobs, footer.shards, next_shard, footer.priority,
                footer.model, look_again_in, retries, int(reopened), sum(ended.values()),
                *[x for pair in ended.items() for x in pair],
            )
        )  # fmt: skip

    def pause(self, tenant: str, batch: str, *, paused: bool) -> bool:
        """Hint nothing more of a batch, or go on; False if the index does not know it."""
        return bool(self._run("pause", tenant, batch, int(paused)))

    def cancel(self, batch: str) -> bool:
        """False if the index does not know it; then whoever opens it finds the mark in the store."""
        return bool(self._run("cancel", batch))

    def uncount(self, tenant: str, batch: str, state: JobState, jobs: int) -> bool:
        """So many jobs that ended in `state` are to run again; False if the batch is over, and must be opened anew."""
        return bool(self._run("uncount", tenant, batch, state.value, jobs))

    def record(self, tenant: str, batch: str) -> BatchRecord | None:
        with mapped():
            row = cast("Mapping[str, str]", self._redis.hgetall(keys.batch_row(batch)))
        if "state" not in row:
            return None
        numbers = {name: int(row.get(name, 0)) for name in ("jobs", "shards", "next_shard", "live", "retries", "looks")}
        counts = {name[2:]: int(value) for name, value in row.items() if name.startswith("n:") and int(value)}
        return BatchRecord(
            tenant,
            batch,
            row["state"],
            row.get("model", ""),
            scripts.priority_at(float(row.get("place", 0))) if "place" in row else 50,
            row.get("paused") == "1",
            counts=counts,
            reopened=row.get("reopened") == "1",
            **numbers,
        )

    # What the dispatcher does

    def unindexed(self) -> Iterator[tuple[str, str, str]]:
        """(tenant, batch, model) with shards that are not indexed: more urgent ones first, then first come first."""
        for begin in count(0, _PAGE):
            with mapped():
                names = cast("list[str]", self._redis.zrange(keys.OPEN, begin, begin + _PAGE - 1))
            for name in names:
                tenant, batch, model = name.split("/")
                yield tenant, batch, model
            if len(names) < _PAGE:
                return

    def live(self) -> dict[tuple[str, str], int]:
        """(tenant, model) → jobs that are indexed, have not ended and are not held."""
        with mapped():
            counts = cast("Mapping[str, str]", self._redis.hgetall(keys.LIVE))
        return {cast("tuple[str, str]", tuple(name.split("/"))): int(count) for name, count in counts.items()}

    def index_shard(
        self, tenant: str, batch: str, shard: int, refs: Sequence[JobRef], *, ended: Mapping[str, int] | None = None
    ) -> bool:
        """Make the rows of a shard, and note that it is done; False if somebody else did.

        `ended` (state → jobs): of its jobs that have a result, and are not among `refs`.
        """
        counts = [value for pair in (ended or {}).items() for value in pair]
        rows = [value for ref in refs for value in ref.row()]
        return self._run("index", tenant, batch, shard, len(counts) // 2, *counts, *rows) >= 0

    def close(self, tenant: str, batch: str, *, retries: int = 0, again: bool = False) -> bool:
        """Nothing of it is left to do; with `again` it is to be opened once more. False if jobs of it are left.

        `retries`: how many the caller knows of; False if there are others by now.
        """
        return bool(self._run("close", tenant, batch, retries, int(again)))

    # What is over, and whose results are to be rolled into shards

    def roll_later(self, tenant: str, batch: str, retries: int) -> None:
        """A batch is over, after so many retries."""
        with mapped():
            self._redis.sadd(keys.ROLLING, f"{tenant}/{batch}/{retries}")

    def rolling(self) -> list[tuple[str, str, int]]:
        """(tenant, batch, retries) of all that wait for it."""
        with mapped():
            names = cast("set[str]", self._redis.smembers(keys.ROLLING))
        return [(tenant, batch, int(retries)) for tenant, batch, retries in (name.split("/") for name in sorted(names))]

    def rolled(self, tenant: str, batch: str, retries: int) -> None:
        with mapped():
            self._redis.srem(keys.ROLLING, f"{tenant}/{batch}/{retries}")

    def collected_at(self) -> float | None:
        """When the store was last gone through for orphaned outputs, by the clock of who did; None if nobody knows."""
        with mapped():
            at = cast("str | None", self._redis.get(keys.COLLECTED))
        return None if at is None else float(at)

    def set_collected(self, at: float) -> None:
        with mapped():
            self._redis.set(keys.COLLECTED, at)

    # After Redis lost everything

    def epoch(self) -> str | None:
        with mapped():
            return cast("str | None", self._redis.get(keys.EPOCH))

    def begin_walk(self) -> str:
        """A walk over the store begins; its name."""
        walk = keys.WALK + secrets.token_hex(8)
        with mapped():
            self._redis.set(walk, 1, ex=7 * 24 * 3600)
        return walk

    def give_up_walk(self, walk: str) -> None:
        """It came to nothing, and leaves nothing."""
        with mapped():
            self._redis.delete(walk)

    def end_walk(self, walk: str) -> None:
        """The index is whole again, unless Redis was lost once more meanwhile."""
        self._run("end_walk", walk)
