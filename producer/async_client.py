"""The SDK for asyncio: the same calls, each in a thread of its own, so that an event loop never waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from farm.config import Settings
from farm.schemas import BatchSummary, InpaintJob, JobResult
from farm.states import JobState
from producer.batch import BatchHandle
from producer.client import Client
from producer.handle import JobEvent, JobHandle

T = TypeVar("T")
_END: Any = object()


class AsyncJobHandle:
    """A `JobHandle` whose calls are awaited."""

    def __init__(self, handle: JobHandle):
        self.sync = handle
        self.id, self.address, self.job = handle.id, handle.address, handle.job

    async def status(self) -> JobState:
        return await asyncio.to_thread(self.sync.status)

    async def result(self, timeout: float | None = None, *, check: bool = True) -> JobResult:
        """As `JobHandle.result`. A thread waits as long as it takes: give many jobs to `AsyncClient.map` instead."""
        return await asyncio.to_thread(self.sync.result, timeout, check=check)

    def events(self, timeout: float | None = None) -> AsyncIterator[JobEvent]:
        return _stepped(lambda: self.sync.events(timeout))

    async def cancel(self) -> JobState:
        return await asyncio.to_thread(self.sync.cancel)


class AsyncBatchHandle:
    """A `BatchHandle` whose calls are awaited. What is not here is called on `sync`, in a thread."""

    def __init__(self, handle: BatchHandle):
        self.sync = handle
        self.id, self.tenant, self.jobs = handle.id, handle.tenant, handle.jobs

    async def status(self) -> BatchSummary:
        return await asyncio.to_thread(self.sync.status)

    async def wait(self, timeout: float | None = None) -> BatchSummary:
        return await asyncio.to_thread(self.sync.wait, timeout)

    def results(self) -> AsyncIterator[JobResult]:
        return _stepped(self.sync.results)

    def follow(self, *, ordered: bool = True, skip: int = 0, timeout: float | None = None) -> AsyncIterator[JobResult]:
        return _stepped(lambda: self.sync.follow(ordered=ordered, skip=skip, timeout=timeout))

    async def cancel(self) -> bool:
        return await asyncio.to_thread(self.sync.cancel)


class AsyncClient:
    """A `Client` whose calls are awaited; made from the same arguments, or from a client."""

    def __init__(self, settings: Settings | None = None, *, client: Client | None = None):
        self.sync = client or Client(settings)

    async def submit(self, job: InpaintJob, *, idempotency_key: str | None = None) -> AsyncJobHandle:
        return AsyncJobHandle(await asyncio.to_thread(self.sync.submit, job, idempotency_key=idempotency_key))

    async def submit_batch(
        self, jobs: Iterable[InpaintJob] | str | Path, *, tenant: str = "default", idempotency_key: str | None = None,
        webhook_url: str | None = None,
    ) -> AsyncBatchHandle:  # fmt: skip
        """As `Client.submit_batch`; `jobs` is read in another thread."""
        handle = await asyncio.to_thread(
            self.sync.submit_batch, jobs, tenant=tenant, idempotency_key=idempotency_key, webhook_url=webhook_url
        )
        return AsyncBatchHandle(handle)

    async def job(self, address: str, *, tenant: str = "default") -> AsyncJobHandle:
        return AsyncJobHandle(await asyncio.to_thread(self.sync.job, address, tenant=tenant))

    async def batch(self, batch_id: str, *, tenant: str = "default") -> AsyncBatchHandle:
        return AsyncBatchHandle(await asyncio.to_thread(self.sync.batch, batch_id, tenant=tenant))

    def map(self, jobs: Iterable[InpaintJob] | str | Path, **options: Any) -> AsyncIterator[JobResult]:
        """As `Client.map`, with its options."""
        return _stepped(lambda: self.sync.map(jobs, **options))


async def _stepped(begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """An iterator whose every step is taken in a thread."""
    steps = await asyncio.to_thread(begin)
    while (item := await asyncio.to_thread(next, steps, _END)) is not _END:
        yield item
