"""Shards: the objects in which jobs are accepted and their results kept, up to 1,000 lines each.

A line is one job (`schemas.spec_line`). A shard is written once; a batch counts only when its footer is there.

A job's result is an object of its own, which ends the job and stays. When a batch is over, the dispatcher rolls the
results of each spec shard into one object beside the summary, so that reading a million takes a thousand reads. A retry
begins new generations, so what is rolled is named after the number of retries that it knows of: no later one changes
it, and a reader who finds it old, not all there, or empty reads the jobs' own objects.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

from farm import keys
from farm.distinct import Distinct
from farm.errors import InputNotFound, InvalidName, InvalidParameter, SpecDamaged, SpecTooLarge, SpecUnreadable
from farm.ledger.records import JobRef
from farm.names import check_name
from farm.schemas import MAX_SPEC_BYTES, BatchFooter, BatchSummary, InpaintJob, JobResult, spec_line
from farm.storage import ObjectStore, shown

MAX_JOBS = 1000  # of a shard
MAX_BYTES = 8 * 1024**2  # of a shard; it ends early rather than grow past this
_MAX_READ = MAX_BYTES + 2 * MAX_SPEC_BYTES
MAX_RESULT_BYTES = 4 * 1024**2
MAX_ROLLED_BYTES = 64 * 1024**2  # of a shard of results; those of one that would grow past this stay by themselves
READERS = 16  # results on their way at once
_DEFAULTS = {name: InpaintJob.model_fields[name].default for name in ("model", "priority")}


@dataclass(frozen=True)
class Shard:
    number: int
    data: bytes
    jobs: int
    priority: int  # of its first job


@dataclass(frozen=True)
class Accepted:
    """What the names of a batch's objects tell. `single`: a job that was submitted alone."""

    tenant: str
    batch: str
    shards: int
    retries: int
    single: bool


def sized(line: bytes) -> bytes:
    """The line, or SpecTooLarge."""
    if len(line) > MAX_SPEC_BYTES:
        raise SpecTooLarge(f"The job is {len(line)} bytes of JSON, at most {MAX_SPEC_BYTES} are taken; shorten it.")
    return line


def shards_of(jobs: Iterable[InpaintJob], line_of: Callable[[InpaintJob], bytes] = spec_line) -> Iterator[Shard]:
    """Jobs of one tenant, each with a custom_id of its own, in shards; InvalidParameter for one that comes twice.

    Memory does not grow with the jobs: what is kept of one that has gone by is its name's hash, in a file if need be.
    """
    lines: list[bytes] = []
    names: list[str] = []
    size = number = priority = 0

    def shard(seen: Distinct) -> Shard:
        if (twice := seen.again(names)) is not None:
            raise InvalidParameter("custom_id", f"{twice!r} comes twice in this batch; name every job once")
        return Shard(number, b"".join(lines), len(lines), priority)

    with closing(Distinct()) as seen:
        for job in jobs:
            line = line_of(job)
            if lines and (len(lines) == MAX_JOBS or size + len(line) > MAX_BYTES):
                yield shard(seen)
                lines, names, size, number = [], [], 0, number + 1
            if not lines:
                priority = job.priority
            lines.append(line)
            names.append(job.custom_id)
            size += len(line)
        if lines:
            yield shard(seen)


def refs_in(
    data: bytes, tenant: str, batch: str, shard: int, generations: Mapping[str, int] | None = None
) -> list[JobRef]:
    """Where the jobs of a shard's bytes lie. `generations`: of those jobs that were retried."""
    refs, offset, later = [], 0, generations or {}
    *lines, rest = data.split(b"\n")
    if rest:
        raise SpecDamaged(f"Shard {shard} of batch {batch} of {tenant} ends inside a line.")
    for number, line in enumerate(lines):
        name, model, priority = _routed(line, number)
        job = keys.job_id(tenant, batch, name)
        refs.append(JobRef(job, tenant, batch, model, shard, offset, len(line) + 1, later.get(job, 0), priority))
        offset += len(line) + 1
    return refs


def _routed(line: bytes, number: int) -> tuple[str, str, int]:
    """(custom_id, model, priority) of a line. What cannot be routed by is replaced: the worker says what is wrong."""
    try:
        spec = {**_DEFAULTS, **json.loads(line)}
        name, model = check_name("custom_id", spec["custom_id"]), check_name("model", spec["model"])
    except (ValueError, TypeError, KeyError, RecursionError, InvalidName):
        return f"line-{number}", _DEFAULTS["model"], _DEFAULTS["priority"]
    priority = spec["priority"]
    return name, model, priority if type(priority) is int and 0 <= priority <= 100 else _DEFAULTS["priority"]


class Shelf:
    """The shards of one farm's store, read."""

    def __init__(self, store: ObjectStore, root: str):
        self.store, self.root = store, root

    def refs(self, tenant: str, batch: str, shard: int, generations: Mapping[str, int] | None = None) -> list[JobRef]:
        """Raises InputNotFound."""
        data = self.store.get(keys.spec_shard(self.root, tenant, batch, shard), max_bytes=_MAX_READ).data
        return refs_in(data, tenant, batch, shard, generations)

    def accepted(self) -> Iterator[Accepted]:
        """All that was ever accepted, or announced and never sealed, by one walk over the names of all specs."""
        root = keys.specs(self.root)
        parts = (info.uri.removeprefix(root).split("/") for info in self.store.list(root))
        for (tenant, batch), group in groupby((part for part in parts if len(part) == 3), key=lambda part: part[:2]):
            kinds = Counter(re.sub(r"\d+", "", name) for _, _, name in group)
            yield Accepted(tenant, batch, kinds[".ndjson"], kinds["retry-.ndjson"], single=bool(kinds["single.ndjson"]))

    def footer(self, tenant: str, batch: str) -> BatchFooter | None:
        try:
            data = self.store.get(keys.batch_footer(self.root, tenant, batch), max_bytes=MAX_SPEC_BYTES).data
        except InputNotFound:
            return None
        footer = BatchFooter.from_json(data)
        fits = footer.shards <= footer.jobs <= footer.shards * MAX_JOBS
        if (footer.tenant, footer.batch_id) != (tenant, batch) or not fits:
            raise SpecDamaged(f"The footer of batch {batch} of {tenant} is of another one, or does not add up.")
        return footer

    def has_single(self, tenant: str, batch: str) -> bool:
        return self.store.exists(keys.spec_shard(self.root, tenant, batch, keys.SINGLE))

    def canceled(self, tenant: str, batch: str) -> bool:
        return self.store.exists(keys.batch_canceled(self.root, tenant, batch))

    def generations(self, tenant: str, batch: str, *, retries: int | None = None) -> dict[str, int]:
        """Job → its newest generation, for the jobs of a batch that were retried; as of so many `retries`."""
        known = islice(self.retries(tenant, batch), retries)
        return {ref.job_id: ref.generation for retry in known for ref in retry}

    def retries(self, tenant: str, batch: str) -> Iterator[list[JobRef]]:
        """The jobs of every retry, first retry first."""
        number = 0
        while True:
            try:
                data = self.store.get(keys.retry(self.root, tenant, batch, number), max_bytes=2**31).data
            except InputNotFound:
                return
            refs = [JobRef(**json.loads(line)) for line in data.splitlines()]
            if any((ref.tenant, ref.batch_id) != (tenant, batch) for ref in refs):
                raise SpecDamaged(f"Retry {number} of batch {batch} of {tenant} names jobs of another batch.")
            yield refs
            number += 1

    def retry_count(self, tenant: str, batch: str) -> int:
        return sum(1 for _ in self.retries(tenant, batch))

    # Results

    def summary(self, tenant: str, batch: str) -> BatchSummary | None:
        try:
            uri = keys.summary(self.root, tenant, batch)
            return BatchSummary.from_json(self.store.get(uri, max_bytes=MAX_RESULT_BYTES).data)
        except InputNotFound:
            return None

    def results(self, tenant: str, batch: str) -> Iterator[JobResult]:
        """The results there are now, in the order of the jobs; those of retried jobs are the newest.

        One read a shard where they are rolled, else one a job; no more than a shard is held. Nothing of what is
        no sealed batch.
        """
        for _, results in self.result_shards(tenant, batch):
            yield from results

    def result_shards(self, tenant: str, batch: str) -> Iterator[tuple[int, list[JobResult]]]:
        """The same by spec shard."""
        footer, summary = self.footer(tenant, batch), self.summary(tenant, batch)
        later: dict[str, int] = {}
        retries = 0
        for retry in self.retries(tenant, batch):
            later.update((ref.job_id, ref.generation) for ref in retry)
            retries += 1
        rolled = summary is not None and summary.results is not None and summary.retries == retries
        with ThreadPoolExecutor(READERS) as pool:
            for shard in range(footer.shards) if footer else ():
                lines: Iterable[bytes | None] = self._rolled(tenant, batch, retries, shard) if rolled else ()
                if not lines:
                    lines = self.result_lines(self.refs(tenant, batch, shard, later), pool)
                yield shard, [JobResult.from_json(line) for line in lines if line is not None]

    def _rolled(self, tenant: str, batch: str, retries: int, shard: int) -> list[bytes]:
        try:
            uri = keys.rolled(self.root, tenant, batch, retries, shard)
            return self.store.get(uri, max_bytes=MAX_ROLLED_BYTES).data.split(b"\n")[:-1]
        except InputNotFound:
            return []

    def result_lines(self, refs: Iterable[JobRef], pool: Executor) -> list[bytes | None]:
        """Each job's result object as it is, None where there is none."""
        return list(pool.map(self._result_line, refs))

    def result(self, ref: JobRef) -> JobResult | None:
        """How a job's generation ended; None if it has not."""
        line = self._result_line(ref)
        return None if line is None else JobResult.from_json(line)

    def _result_line(self, ref: JobRef) -> bytes | None:
        uri = keys.result(self.root, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
        try:
            return self.store.get(uri, max_bytes=MAX_RESULT_BYTES).data
        except InputNotFound:
            return None

    # Specs

    def lines(self, refs: list[JobRef]) -> list[bytes]:
        """The spec of each job, in one read where they lie side by side. Raises SpecUnreadable."""
        first = refs[0]
        uri = keys.spec_shard(self.root, first.tenant, first.batch_id, first.shard)
        beside = all(
            (one.batch_id, one.shard, one.offset) == (two.batch_id, two.shard, two.offset - one.length)
            for one, two in pairwise(refs)
        )
        if not beside:
            return [line for ref in refs for line in self.lines([ref])]
        try:
            data = self.store.get_range(uri, first.offset, sum(ref.length for ref in refs))
        except (InputNotFound, InvalidParameter):  # no fault of the job: a store that is not mounted looks like this
            raise SpecUnreadable(f"The specs at {shown(uri)} cannot be read now; is the store the farm's?") from None
        return [data[ref.offset - first.offset :][: ref.length] for ref in refs]
