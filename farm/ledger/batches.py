"""`Batches`: accepted work that is not all indexed yet, and the marks that whole batches carry."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from farm import keys
from farm.errors import QuotaExceeded
from farm.ledger import scripts
from farm.ledger.connection import mapped
from farm.ledger.records import BatchRecord, JobRef
from farm.schemas import BatchFooter
from farm.states import JobState


class Batches:
    """Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, client: redis.Redis):
        self._redis = client
        self._scripts = {
            name: client.register_script(scripts.PRELUDE + text)
            for name, text in (
                ("announce", scripts.ANNOUNCE), ("open", scripts.OPEN_BATCH), ("index", scripts.INDEX_SHARD),
                ("close", scripts.CLOSE_BATCH), ("pause", scripts.PAUSE), ("cancel", scripts.CANCEL),
                ("uncount", scripts.UNCOUNT),
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

    def open(self, footer: BatchFooter, *, next_shard: int = 0, canceled: bool = False, look_again_in: float,
             counts: Mapping[str, int] | None = None) -> bool:  # fmt: skip
        """All of a batch is in the store; its shards from `next_shard` on are indexed as there is room.

        `counts` (state → jobs) says how those jobs ended that need nothing more. False if it is open already.
        """
        state, ended = "canceled" if canceled else "open", dict(counts or {})
        return bool(
            self._run(
                "open", footer.tenant, footer.batch_id, footer.jobs, footer.shards, next_shard, footer.priority, state,
                footer.model, look_again_in, sum(ended.values()), *[part for pair in ended.items() for part in pair],
            )
        )  # fmt: skip

    def pause(self, batch: str, *, paused: bool) -> bool:
        """Hint nothing more of a batch, or go on; False if the index does not know it."""
        return bool(self._run("pause", batch, int(paused)))

    def cancel(self, batch: str) -> bool:
        return bool(self._run("cancel", batch))

    def uncount(self, tenant: str, batch: str, state: JobState, jobs: int) -> bool:
        """So many jobs that ended in `state` are to run again; False if the batch is over, and must be opened anew."""
        return bool(self._run("uncount", tenant, batch, state.value, jobs))

    def record(self, tenant: str, batch: str) -> BatchRecord | None:
        with mapped():
            row = cast("Mapping[str, str]", self._redis.hgetall(keys.batch_row(batch)))
        if "state" not in row:
            return None
        numbers = {name: int(row.get(name, 0)) for name in ("jobs", "shards", "next_shard", "live")}
        counts = {name[2:]: int(value) for name, value in row.items() if name.startswith("n:") and int(value)}
        return BatchRecord(
            tenant, batch, row["state"], row.get("model", ""), row.get("paused") == "1", counts=counts, **numbers
        )

    # What the dispatcher does

    def unindexed(self) -> list[tuple[str, str]]:
        """(tenant, batch) with shards that are not indexed, first come first, more urgent ones before."""
        with mapped():
            names = cast("list[str]", self._redis.zrange(keys.OPEN, 0, 999))
        return [cast("tuple[str, str]", tuple(name.split("/", 1))) for name in names]

    def live(self) -> dict[str, int]:
        """Tenant → jobs that are indexed, have not ended and are not paused."""
        with mapped():
            counts = cast("Mapping[str, str]", self._redis.hgetall(keys.LIVE))
        return {tenant: int(count) for tenant, count in counts.items()}

    def index_shard(self, tenant: str, batch: str, shard: int, refs: Sequence[JobRef]) -> bool:
        """Make the rows of a shard, and note that it is done; False if somebody else did."""
        return self._run("index", tenant, batch, shard, *[value for ref in refs for value in ref.row()]) >= 0

    def close(self, tenant: str, batch: str) -> None:
        self._run("close", tenant, batch)

    # After Redis lost everything

    def epoch(self) -> str | None:
        with mapped():
            return cast("str | None", self._redis.get(keys.EPOCH))

    def begin_epoch(self) -> None:
        """The index is whole again."""
        with mapped():
            self._redis.set(keys.EPOCH, secrets.token_hex(8), nx=True)
