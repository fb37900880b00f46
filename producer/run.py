"""A run: a manifest's jobs submitted, followed to their ends, and their results written, by as many processes in turn
as it takes.

What makes a run resumable lies where it cannot be lost. Each part of the manifest is one batch, whose name follows from
the run's key, so submitting again is harmless; and `results.ndjson` is in the manifest's order, so what is left to
write follows from its length. A process that is killed leaves at worst half a line.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from farm import keys
from farm.errors import IdempotencyConflict, InvalidParameter, Misconfigured, OverBudget, QueueUnavailable
from farm.schemas import JobResult, dump_line
from producer.batch import BatchHandle
from producer.client import Client
from producer.cost import Costs
from producer.manifest import Manifest
from producer.results import read_lines, write_results
from producer.run_record import NAME, Part, RunRecord

RESULTS = "results.ndjson"
OPENAI = "results.openai.jsonl"


class Run:
    """One run in `folder`. Use `begin` or `reopen`."""

    def __init__(self, client: Client, manifest: Manifest, folder: Path, record: RunRecord):
        self.client, self.manifest, self.folder, self.record = client, manifest, folder, record
        self.costs = Costs()

    @classmethod
    def begin(
        cls, client: Client, manifest: Manifest, folder: Path, *, tenant: str, key: str | None = None, sample: int = 0,
        webhook: str | None = None,
    ) -> Run:  # fmt: skip
        """A new run. `sample` rows are its first part, the rest waits until `let_through`. `webhook` is as
        `submit_batch`'s, for each part.

        Raises Misconfigured if another run is in `folder`; one that came to nothing, since a row was bad, is none.
        """
        if (folder / NAME).exists():
            there = cls(client, manifest, folder, RunRecord.read(folder))
            if there.results_path.exists() or there.submitted():
                raise Misconfigured(
                    f"A run was begun in {folder} already: go on with --resume, or choose another --out."
                )
        elif folder.exists() and any(folder.iterdir()):
            raise Misconfigured(f"{folder} is not empty and holds no run; choose another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        print_ = manifest.fingerprint()
        parts = (Part(0, sample or None),)
        record = RunRecord(manifest.uri, print_, tenant, key or f"run/{print_}", parts, sample, webhook)
        record.write(folder)
        return cls(client, manifest, folder, record)

    @classmethod
    def reopen(cls, client: Client, manifest: Manifest, folder: Path) -> Run:
        """A run that was begun before. Raises InputNotFound, and IdempotencyConflict if its manifest has changed."""
        record = RunRecord.read(folder)
        if record.fingerprint != manifest.fingerprint():
            raise IdempotencyConflict(
                f"The manifest (or its --set) is not what the run in {folder} was begun with; give that one, or run "
                "the new rows on their own with another --out."
            )
        return cls(client, manifest, folder, record)

    @property
    def results_path(self) -> Path:
        return self.folder / RESULTS

    @property
    def sampled(self) -> bool:
        """Only the sample was let through so far."""
        return self.record.parts[-1].stop is not None

    def let_through(self) -> None:
        """Render the rows after the sample, too."""
        if self.sampled:
            last = self.record.parts[-1]
            self._keep(replace(self.record, parts=(*self.record.parts, Part(last.stop or 0))))

    def batches(self) -> list[BatchHandle]:
        """The batches of the parts that were let through, submitted now if they were not yet."""
        return [self._batch(part) for part in self.record.parts]

    def submitted(self) -> list[BatchHandle]:
        """Those that were submitted completely."""
        found = (self._found(part) for part in self.record.parts)
        return [handle for handle in found if handle is not None]

    def _key(self, part: Part) -> str:
        return f"{self.record.key}/{part.first}"

    def _found(self, part: Part) -> BatchHandle | None:
        batch = keys.batch_id(self.record.tenant, self._key(part), single=False)
        with suppress(InvalidParameter):
            return self.client.batch(batch, tenant=self.record.tenant)
        return None

    def _batch(self, part: Part) -> BatchHandle:
        webhook = self.record.webhook
        if (found := self._found(part)) is not None:
            if webhook is not None and found.webhook_url != webhook:
                raise IdempotencyConflict(
                    f"Batch {found.id} was submitted before, with another webhook or none; leave --webhook out, or "
                    "give a --key to render it again."
                )
            return found
        return self.client.submit_batch(
            self.manifest.jobs(part.first, part.stop), tenant=self.record.tenant, idempotency_key=self._key(part),
            webhook_url=webhook,
        )  # fmt: skip

    def retry_failed(self) -> int:
        """Give every failed job another generation; how many. The results are written again by `finish`."""
        self._keep(replace(self.record, rewrite=True))
        return sum(batch.retry_failed() for batch in self.submitted())

    def resume(self) -> None:
        """Go on where the run was paused, by hand or at the end of its budget."""
        for batch in self.submitted():
            with suppress(QueueUnavailable, InvalidParameter):  # it is over
                batch.resume()

    # Results

    def read(self) -> Iterable[JobResult]:
        """The results that are written so far."""
        return read_lines(self.results_path)

    def written(self) -> int:
        """How many results are written so far."""
        if self.record.rewrite or not self.results_path.exists():
            return 0
        with self.results_path.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def finish(
        self, *, on_result: Callable[[JobResult], object] = lambda _: None,
        on_wait: Callable[[], object] = lambda: None, may_spend: Callable[[Costs], bool] = lambda _: True,
    ) -> int:  # fmt: skip
        """Write every result that is missing, waiting for it; how many there are then.

        `on_result` is told of every result, also of those written before. When `may_spend` says no, all batches are
        paused and OverBudget is raised. Only within `alone`: two processes would write every result twice.
        """
        batches = self.batches()
        path = self.folder / f"{RESULTS}.new" if self.record.rewrite else self.results_path
        if self.record.rewrite:
            path.unlink(missing_ok=True)
        written = self._recount(path, batches, on_result)
        with path.open("ab") as file:

            def wait() -> None:
                file.flush()
                on_wait()

            left = iter_left(batches, written, self._told(on_result, may_spend, batches), wait)
            for count, result in enumerate(left, written + 1):
                file.write(dump_line(result))
                written = count
            _settle(file)
        if self.record.rewrite:
            path.replace(self.results_path)
            self._keep(replace(self.record, rewrite=False))
        return written

    def _told(
        self, on_result: Callable[[JobResult], object], may_spend: Callable[[Costs], bool], batches: list[BatchHandle]
    ) -> Callable[[JobResult], object]:
        def tell(result: JobResult) -> None:
            self.costs.add(result)
            on_result(result)
            if not may_spend(self.costs):
                for batch in batches:
                    with suppress(QueueUnavailable, InvalidParameter):
                        batch.pause()
                raise OverBudget(
                    f"What was spent ({self.costs.total.gpu_seconds:,.0f} GPU-seconds) has reached --max-cost: the run "
                    "is paused; go on with --resume and a higher --max-cost."
                )

        return tell

    def _recount(self, path: Path, batches: list[BatchHandle], on_result: Callable[[JobResult], object]) -> int:
        """How many results lie in `path`, in order; half a line at its end is cut off.

        Raises Misconfigured when they are not this run's.
        """
        if not path.exists():
            return 0
        _cut_half_a_line(path)
        refs = (ref for batch in batches for group in batch.refs() for ref in group)
        count = 0
        for count, (result, ref) in enumerate(zip(read_lines(path), refs, strict=False), 1):
            if result.job_id != ref.job_id:
                raise Misconfigured(f"Line {count} of {path} is of another run; move the file away.")
            self.costs.add(result)
            on_result(result)
        return count

    def export_openai(self) -> Path:
        """The results once more, in the shape of an OpenAI batch's."""
        path = self.folder / OPENAI
        with path.open("wb") as file:
            write_results(file, read_lines(self.results_path), "openai")
        return path

    def _keep(self, record: RunRecord) -> None:
        self.record = record
        record.write(self.folder)


def iter_left(
    batches: list[BatchHandle], skip: int, on_result: Callable[[JobResult], object], on_wait: Callable[[], object]
) -> Iterator[JobResult]:
    """The results of several batches in order, without the first `skip`."""
    for batch in batches:
        left = max(0, batch.jobs - skip)
        if left:
            yield from batch.follow(skip=batch.jobs - left, on_result=on_result, on_wait=on_wait)
        skip = max(0, skip - batch.jobs)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that begins, steers or writes the run in `folder`, which is made where there is none.

    The lock ends with the process, however that ends. Raises Misconfigured while another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(f"Another process is at work on the run in {folder}; let it end.") from None
        yield
    finally:
        os.close(handle)


def _cut_half_a_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = end
        while whole:
            begin = max(0, whole - (1 << 16))
            file.seek(begin)
            newline = file.read(whole - begin).rfind(b"\n")
            if newline >= 0:
                whole = begin + newline + 1
                break
            whole = begin
        if whole != end:
            file.truncate(whole)


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
