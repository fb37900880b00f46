"""Batches: what seals one, and what came of it in numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from farm.schemas.message import SCHEMA_VERSION, Message, WebhookUrl
from farm.states import JobState


class BatchFooter(Message):
    """What seals a batch: so many jobs in so many shards, all of them written. `model`, `priority`: its first job's."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tenant: str
    batch_id: str
    jobs: int = Field(ge=0)
    shards: int = Field(ge=0)
    model: str = "sd15-inpaint"
    priority: int = Field(default=50, ge=0, le=100)
    webhook_url: WebhookUrl | None = None  # called when all its jobs have ended


class BatchSummary(Message):
    """A batch in numbers. `counts` has the jobs of every state that any is in; what is not indexed yet is queued."""

    batch_id: str
    tenant: str
    jobs: int
    counts: dict[JobState, int]
    paused: bool = False
    canceled: bool = False
    retries: int = 0  # how often jobs of it were given another generation
    finished_at: datetime | None = None  # when its last job was counted; None while any is left
    # Once it is over its results are rolled into shards, in the order of its jobs: <results><shard, 5 digits>.ndjson,
    # a line a job. One that is not there yet, or is empty: those of its jobs lie by themselves.
    results: str | None = None

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.counts.items() if state.terminal)

    @property
    def done(self) -> bool:
        return self.ended >= self.jobs
