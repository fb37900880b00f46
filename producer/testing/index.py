"""The index as a few dicts: what the SDK asks of Redis, answered without one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from farm.errors import QuotaExceeded
from farm.ledger import Batches, BatchRecord, JobRef, Ledger
from farm.schemas import BatchFooter
from farm.states import JobState
from producer.index import Index

Ended = Iterable[tuple[JobRef, JobState, float]]


@dataclass
class Shared:
    """What ledger and batches both see. `waiting`: job id → its job and attempts made; `footers`: open batches."""

    refs_of: Callable[[BatchFooter], list[JobRef]]
    on_work: Callable[[], object]
    waiting: dict[str, tuple[JobRef, int]] = field(default_factory=dict)
    footers: dict[str, BatchFooter] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    canceled: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, refs: Iterable[JobRef]) -> int:
        with self.lock:
            new = [ref for ref in refs if ref.job_id not in self.waiting]
            self.waiting |= {ref.job_id: (ref, 0) for ref in new}
        return len(new)


class MemoryLedger(Ledger):
    def __init__(self, shared: Shared):
        self._shared = shared

    def enqueue(self, refs: Sequence[JobRef], *, counted: bool = True) -> int:
        new = self._shared.add(refs)
        self._shared.on_work()
        return new

    def finish(self, ended: Ended, *, owner: str = "") -> None:
        with self._shared.lock:
            for ref, state, _ in ended:
                if self._shared.waiting.pop(ref.job_id, None) and ref.batch_id in self._shared.counts:
                    self._shared.counts[ref.batch_id][state.value] += 1

    def state(self, job_id: str) -> JobState | None:
        return JobState.QUEUED if job_id in self._shared.waiting else None


class MemoryBatches(Batches):
    def __init__(self, shared: Shared):
        self._shared = shared

    def announce(self, tenant: str, batch: str, *, look_again_in: float, quota: int = 0) -> None:
        with self._shared.lock:
            queued = sum(ref.tenant == tenant for ref, _ in self._shared.waiting.values())
        if quota and queued >= quota:
            raise QuotaExceeded(f"Tenant {tenant!r} has {quota:,} jobs queued, as many as it may; try later.")

    def _open(
        self, footer: BatchFooter, next_shard: int, look_again_in: float, retries: int, counts: Mapping[str, int], *,
        reopened: bool,
    ) -> bool:  # fmt: skip
        with self._shared.lock:
            if footer.batch_id in self._shared.footers:
                return False
            self._shared.footers[footer.batch_id] = footer
            self._shared.counts[footer.batch_id] = Counter()
            self._shared.add(self._shared.refs_of(footer))
        self._shared.on_work()
        return True

    def record(self, tenant: str, batch: str) -> BatchRecord | None:
        with self._shared.lock:
            footer = self._shared.footers.get(batch)
            if footer is None or footer.tenant != tenant:
                return None
            counts = {state: count for state, count in self._shared.counts[batch].items() if count}
        return BatchRecord(
            tenant, batch, "canceled" if batch in self._shared.canceled else "open", model=footer.model,
            paused=batch in self._shared.paused, jobs=footer.jobs, shards=footer.shards, next_shard=footer.shards,
            counts=counts,
        )  # fmt: skip

    def pause(self, tenant: str, batch: str, *, paused: bool) -> bool:
        with self._shared.lock:
            (self._shared.paused.add if paused else self._shared.paused.discard)(batch)
        self._shared.on_work()
        return batch in self._shared.footers

    def cancel(self, batch: str) -> bool:
        with self._shared.lock:
            self._shared.canceled.add(batch)
        self._shared.on_work()
        return batch in self._shared.footers

    def uncount(self, tenant: str, batch: str, state: JobState, jobs: int) -> bool:
        with self._shared.lock:
            self._shared.counts[batch][state.value] -= jobs
        return True


class MemoryIndex(Index):
    def __init__(self, shared: Shared):
        self.ledger, self.batches = MemoryLedger(shared), MemoryBatches(shared)
        self._shared = shared

    def check_room(self, full_at: float) -> None:
        pass

    def unfinished(self, refs: Sequence[JobRef]) -> list[bool]:
        return [ref.job_id in self._shared.waiting for ref in refs]

    def spent(self, model: str) -> tuple[int, float]:
        return 0, 0.0
