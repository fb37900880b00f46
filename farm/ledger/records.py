"""What the ledger is asked and what it answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from operator import attrgetter
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class JobRef:
    """Where a job's spec lies: all that a hint carries and a row needs.

    No address is in it: the worker makes it from its own store, so that a hint cannot point anywhere else; and every
    value stays short enough for Redis' compact encoding of small hashes.
    """

    job_id: str
    tenant: str
    batch_id: str
    model: str
    shard: int  # keys.SINGLE for a job that was submitted alone
    offset: int  # of the job's line in the shard, bytes
    length: int
    generation: int = 0  # of the result; each retry of a job that has ended opens the next
    priority: int = 50

    def row(self) -> tuple[Any, ...]:
        """The values that a row is made of, in the order of the scripts."""
        return _VALUES(self)

    @classmethod
    def from_row(cls, values: list[str]) -> Self:
        return cls(*(int(value) if kind == "int" else value for value, kind in zip(values, _KINDS, strict=True)))  # type: ignore[arg-type]  # strings of Redis, typed here


_KINDS = [str(one.type) for one in fields(JobRef)]
_VALUES = attrgetter(*(one.name for one in fields(JobRef)))
ROW_FIELDS = tuple(one.name for one in fields(JobRef))[1:]


class Outcome(StrEnum):
    CLAIMED = "claimed"
    BUSY = "busy"  # another worker holds a living lease, the job was ended just now, or its batch is paused
    CANCELED = "canceled"  # claimed, but its batch was canceled: nothing but its end is left to write


class Beat(IntEnum):
    LOST = 0  # the lease is somebody else's, or the job has ended
    HELD = 1
    CANCELED = 2  # still held, but its batch was canceled


def new_owner(worker: str) -> str:
    """A name that no other claim has, and that tells which worker made this one."""
    return f"{worker}/{secrets.token_hex(8)}"


def worker_of(owner: str) -> str:
    return owner.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in hand. `owner` is the fence: nobody else's beat or release can touch it."""

    outcome: Outcome
    owner: str = ""
    attempt: int = 0  # 1 for the first
    crashes: int = 0  # leases of this job that ended with their worker silent
    waited_seconds: float = 0.0  # since it was indexed
    saved: bool = False  # a preempted attempt left its state in the store


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as the index knows it. `live`: rows that have not ended. `counts`: state → jobs that ended in it."""

    tenant: str
    batch_id: str
    state: str  # accepting | open | canceled
    model: str = ""
    priority: int = 50
    paused: bool = False
    jobs: int = 0
    shards: int = 0
    next_shard: int = 0  # the first that is not indexed
    live: int = 0
    retries: int = 0  # how often jobs of it were given another generation
    reopened: bool = False  # by a dispatcher, from the store: jobs of it may have ended that nobody has counted
    looks: int = 0  # how often somebody looked, since it was announced or opened
    counts: dict[str, int] = field(default_factory=dict)
