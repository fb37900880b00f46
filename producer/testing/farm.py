"""`FakeFarm`: a client's whole farm in this process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw

from farm import keys
from farm.config import load_settings
from farm.errors import BY_CODE, Canceled, DeadlineExceeded, FarmError, InternalError, ObjectExists, Transient
from farm.ledger import JobRef
from farm.schemas import BatchFooter, ErrorInfo, InpaintJob, JobResult
from farm.shards import Shelf
from farm.states import JobState
from farm.tenants import Tenants
from producer.client import Client
from producer.testing.index import MemoryIndex, Shared
from producer.testing.render import FakeRenderer, failed
from producer.testing.store import MemoryStore

BUCKET = "s3://fake"


@dataclass
class _Fault:
    error: FarmError
    left: int  # attempts that it will meet


class FakeFarm:
    """With `auto` a job is rendered as it is submitted; without, when `work()` is called.

    `seconds_per_image` is what the results say of the device's time; `settings` are those of `farm.config`.
    """

    def __init__(self, *, auto: bool = True, seconds_per_image: float = 2.0, **settings: Any):
        own = {"store": f"{BUCKET}/farm", "redis_url": "redis://127.0.0.1:6379/0", "tenants": None, "local_roots": ()}
        self.settings = load_settings(**{**own, **settings})
        self.store = MemoryStore()
        self.auto = auto
        self.rendered: list[InpaintJob] = []
        """The jobs that were rendered, in that order; a job that was tried again is in it again."""
        self._faults: dict[str, _Fault] = {}
        self._shelf = Shelf(self.store, self.settings.store)
        self._shared = Shared(self._refs_of, self._on_work)
        self._renderer = FakeRenderer(self.settings, self.store, seconds_per_image=seconds_per_image)
        self._tenants = Tenants.load(self.settings)
        self._working = False

    def client(self) -> Client:
        return Client(self.settings, store=self.store, index=MemoryIndex(self._shared))

    # What jobs name

    def put(self, name: str, data: bytes | Image.Image) -> str:
        """Store an object (a picture as PNG); its address."""
        if isinstance(data, Image.Image):
            buffer = BytesIO()
            data.save(buffer, "PNG")
            data = buffer.getvalue()
        uri = f"{BUCKET}/{name}"
        self.store.put(uri, data, content_type="application/octet-stream", create_only=False)
        return uri

    def photo(self, name: str, size: tuple[int, int] = (96, 64)) -> str:
        """Store a picture of a colour gradient; its address."""
        red, green = Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size)
        return self.put(name, Image.merge("RGB", (red, green, Image.new("L", size, 90))))

    def mask(self, name: str, size: tuple[int, int] = (96, 64)) -> str:
        """Store a mask whose middle is to be painted; its address."""
        mask = Image.new("L", size, 0)
        width, height = size
        ImageDraw.Draw(mask).ellipse((width // 4, height // 4, 3 * width // 4, 3 * height // 4), fill=255)
        return self.put(name, mask)

    def fail(self, custom_id: str, error: FarmError | str, *, times: int = 1) -> None:
        """Let the next `times` attempts at the job `custom_id` meet this error, or one of this code.

        A transient error is tried again as on a farm, up to the settings' max_attempts.
        """
        if isinstance(error, str):
            error = _error_of(error)
        self._faults[custom_id] = _Fault(error, times)

    # Work

    def work(self, jobs: int | None = None) -> int:
        """Render what waits, at most so many jobs; how many ended."""
        ended = 0
        while (jobs is None or ended < jobs) and (taken := self._next()) is not None:
            ended += self._attempt(*taken)
        return ended

    def _on_work(self) -> None:
        if not self.auto or self._working:
            return
        self._working = True
        try:
            self.work()
        finally:
            self._working = False

    def _next(self) -> tuple[JobRef, int] | None:
        with self._shared.lock:
            free = (entry for entry in self._shared.waiting.values() if entry[0].batch_id not in self._shared.paused)
            return min(free, key=lambda entry: -entry[0].priority, default=None)

    def _attempt(self, ref: JobRef, attempts: int) -> bool:
        """Whether the job ended."""
        attempt, job = attempts + 1, None
        try:
            line = self._shelf.lines([ref])[0]
            job = self._tenants.admit(line, tenant=ref.tenant, batch_id=ref.batch_id)
            if ref.batch_id in self._shared.canceled:
                raise Canceled("Its batch was canceled.")
            if job.deadline is not None and job.deadline <= datetime.now(UTC):
                raise DeadlineExceeded(f"The deadline {job.deadline.isoformat()} passed before the job was begun.")
            self._meet_fault(job)
            result = self._renderer.skip(ref, job, attempt)
            if result is None:
                self.rendered.append(job)
                result = self._renderer.render(ref, job, attempt)
        except Transient as error:
            if attempt < self.settings.max_attempts:
                with self._shared.lock:
                    self._shared.waiting[ref.job_id] = (ref, attempt)
                return False
            result = _failure(ref, job, error, attempt)
        except FarmError as error:
            result = _failure(ref, job, error, attempt)
        self._commit(ref, result)
        return True

    def _meet_fault(self, job: InpaintJob) -> None:
        fault = self._faults.get(job.custom_id)
        if fault is not None and fault.left > 0:
            fault.left -= 1
            raise fault.error

    def _commit(self, ref: JobRef, result: JobResult) -> None:
        uri = keys.result(self.settings.store, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
        try:
            self.store.put(uri, result.to_json(), content_type="application/json", create_only=True)
        except ObjectExists:  # it was canceled meanwhile
            result = JobResult.from_json(self.store.get(uri, max_bytes=2**22).data)
        self.client().index.ledger.finish([(ref, result.status, 0.0)])

    def _refs_of(self, footer: BatchFooter) -> list[JobRef]:
        """A batch's jobs that have no result."""
        later = self._shelf.generations(footer.tenant, footer.batch_id)
        shards = (self._shelf.refs(footer.tenant, footer.batch_id, number, later) for number in range(footer.shards))
        return [ref for refs in shards for ref in refs]


def _failure(ref: JobRef, job: InpaintJob | None, error: FarmError, attempt: int) -> JobResult:
    states: dict[type[FarmError], JobState] = {Canceled: JobState.CANCELED, DeadlineExceeded: JobState.EXPIRED}
    state = states.get(type(error), JobState.FAILED)
    return failed(ref, job, state, ErrorInfo(code=error.code, message=str(error)), attempt=attempt)


def _error_of(code: str) -> FarmError:
    cls = BY_CODE.get(code)
    if cls is None:
        raise InternalError(f"{code!r} is no code of farm.errors")
    error = cls.__new__(cls)
    error.args = (f"An injected {code}.",)
    return error
