"""One job's path: claim → fetch → decode → render → verify → encode → commit. No Celery in here.

A result object, created once, ends every job, good or bad; only a job that is to be tried again leaves none. Outputs
are written before the result, under names that a second attempt would meet again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Protocol

from PIL import Image

from farm import keys
from farm.config import Settings
from farm.errors import (
    CheckpointInvalid,
    DeadlineExceeded,
    EmbeddingInvalid,
    FarmError,
    OutputExists,
    QueueForbidden,
    QueueUnavailable,
    UnknownModel,
    WorkerCrashed,
    WorkerFatal,
)
from farm.ledger import Claim, JobRef, Ledger, Outcome
from farm.logs import job_context
from farm.outputs import skip_warning
from farm.schemas import EmbeddingRef, InpaintJob, IpAdapterRef, LoraRef, Output, Receipt
from farm.shards import Shelf
from farm.states import JobState
from farm.storage import ObjectStore
from farm.tenants import Tenants
from worker import gatekeeper, images, spans
from worker.assets import Asset, Kind
from worker.bank import Budgets, LoraBank
from worker.lease import JobLease, Lease
from worker.outputs import Outputs
from worker.verdicts import Attempt, Verdicts

log = logging.getLogger(__name__)

CLAIM_SECONDS = 0.2  # jobs are claimed together that end in so long
MOST_CLAIMED = 64
KEPT_SECONDS = 1.0  # what was claimed together and not begun by then is given back


@dataclass(frozen=True)
class RenderRequest:
    """What a renderer needs: the region at the bucket's size, the job's words and numbers, its LoRAs."""

    job: InpaintJob
    image: Image.Image
    mask: Image.Image
    seed: int
    on_step: Callable[[], object]  # called after every step; what it raises ends the render
    loras: tuple[tuple[LoraRef, Asset], ...] = ()
    embeddings: tuple[tuple[EmbeddingRef, Asset], ...] = ()
    ip_adapter: tuple[IpAdapterRef, Asset, Image.Image] | None = None  # with its reference image
    resume: bytes | None = None  # what a preempted attempt left
    preempted: Callable[[], bool] = lambda: False  # asked after every step: whether to stop and leave the state


@dataclass(frozen=True)
class Rendered:
    images: list[Image.Image]
    timings: dict[str, float]  # stage → seconds
    lora_swap_seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    lora_mode: str = ""  # how its LoRAs acted: merged, mixed, merged+mixed


class Renderer(Protocol):
    device: str
    checkpoint_sha256: str

    def read_lora(self, data: bytes) -> Any: ...

    def read_embedding(self, data: bytes) -> Any: ...

    def read_ip_adapter(self, data: bytes) -> Any: ...

    def progress(self) -> int:
        """Grows whenever the device gets something done, for whichever job."""

    def estimate_seconds(self, request: RenderRequest) -> float:
        """How long the request will take, or what is left of it, from what others took; infinity if not known."""

    def render(self, request: RenderRequest) -> Rendered: ...


class Runner:
    """Runs jobs; safe to call from many threads, one hint each."""

    def __init__(
        self, settings: Settings, store: ObjectStore, ledger: Ledger, renderer: Renderer,
        tenants: Tenants | None = None,
    ):  # fmt: skip
        self._settings, self._store, self._ledger, self._renderer = settings, store, ledger, renderer
        self._tenants = tenants or Tenants.load(settings)
        self._shelf = Shelf(store, settings.store)
        self._drain_by: float | None = None
        self._seconds_a_job = 1.0
        self._bank = _bank(settings, store, renderer)
        self._prompt_length = None
        if settings.model_path is not None:
            from worker.prompt_length import (
                PromptLength,
            )  # imports torch, which a worker without a model can do without

            self._prompt_length = PromptLength(settings.model_path)
        self._outputs = Outputs(settings, store)
        self._verdicts = Verdicts(
            settings, store, ledger, device=renderer.device, checkpoint_sha256=renderer.checkpoint_sha256
        )

    def drain(self) -> None:
        """Finish what fits the settings' drain_seconds, give back the rest; what is running is saved after its step."""
        self._drain_by = time.monotonic() + self._settings.drain_seconds

    def run(self, refs: Sequence[JobRef]) -> dict[str, JobState]:
        """Take a hint's jobs as far as they go; job → its terminal state, for those that are ours to end.

        Raises only what must end the process (WorkerFatal); every other failure is a job's. Jobs are claimed a few at
        a time, as many as end in a moment, so that other workers find some left.
        """
        ended: dict[str, JobState] = {}
        left = list(refs)
        while left:
            if self._drain_by is not None:
                self._ledger.give_back(left)
                break
            count = max(1, min(MOST_CLAIMED, int(CLAIM_SECONDS / self._seconds_a_job)))
            now, left = left[:count], left[count:]
            claims = self._ledger.claim(now, lease_seconds=self._settings.lease_seconds)
            mine = [(ref, claim) for ref, claim in zip(now, claims, strict=True) if claim.outcome is not Outcome.BUSY]
            if mine:
                ended |= self._run_claimed(mine)
        return ended

    def _run_claimed(self, mine: list[tuple[JobRef, Claim]]) -> dict[str, JobState]:
        owner, began = mine[0][1].owner, time.monotonic()
        ended: list[tuple[JobRef, JobState, float]] = []
        todo = list(reversed(mine))
        refs = [ref for ref, _ in mine]
        try:
            with Lease(self._ledger, refs, owner, lease_seconds=self._settings.lease_seconds) as lease:
                lines = self._lines(refs)
                self._look_ahead(mine, lines, began)
                while todo and self._drain_by is None:
                    # A job that turns out slow keeps none of the others waiting for this worker.
                    if len(todo) < len(mine) and time.monotonic() - began > KEPT_SECONDS:
                        break
                    ref, claim = todo.pop()
                    attempt = Attempt(ref, claim, timings={"queue_wait": claim.waited_seconds}, claimed=began)
                    about = {"job": ref.job_id, "batch": ref.batch_id, "tenant": ref.tenant}
                    with job_context(**about, attempt=claim.attempt):
                        state = self._attempt(attempt, lines[ref.job_id], lease)
                        spans.tell(attempt, state)
                    lease.drop(ref)
                    if state is not None:
                        ended.append((ref, state, attempt.device_seconds))
        finally:
            with suppress(
                QueueUnavailable, QueueForbidden
            ):  # then the leases end, and whoever claims these jobs sees which have ended
                self._ledger.finish(ended, owner=owner)
                for ref, _ in todo:
                    self._ledger.release(ref, owner, delay_seconds=0.0, charged=False)
        done = len(mine) - len(todo)
        self._seconds_a_job += 0.3 * ((time.monotonic() - began) / max(1, done) - self._seconds_a_job)
        return {ref.job_id: state for ref, state, _ in ended}

    def _lines(self, refs: list[JobRef]) -> dict[str, bytes | FarmError]:
        """Each job's spec, or why it cannot be read."""
        try:
            return dict(zip((ref.job_id for ref in refs), self._shelf.lines(refs), strict=True))
        except FarmError as error:
            return dict.fromkeys((ref.job_id for ref in refs), error)

    def _look_ahead(self, mine: list[tuple[JobRef, Claim]], lines: dict[str, bytes | FarmError], since: float) -> None:
        """Have the weights of these jobs brought near, but not of those that took a worker down: it may be the weights.

        What is wrong with a job is told when it has its turn.
        """
        for ref, claim in mine:
            line = lines[ref.job_id]
            if isinstance(line, bytes) and claim.outcome is not Outcome.CANCELED and not claim.crashes:
                with suppress(FarmError):
                    self._bank.prefetch(_brought(self._admitted(ref, line)), since=since)

    def _attempt(self, attempt: Attempt, line: bytes | FarmError, lease: Lease) -> JobState | None:
        try:
            before = self._verdicts.read(attempt.ref)  # whoever had the job before may have ended it
            if before is not None:
                return before.status
            if isinstance(line, FarmError):
                raise line
            if attempt.claim.outcome is Outcome.CANCELED:
                attempt.job = self._admitted(attempt.ref, line)
                return self._verdicts.cancel(attempt)
            outputs, receipt = self._render(attempt, line, lease.of(attempt.ref))
            return self._verdicts.commit(attempt, JobState.SUCCEEDED, outputs=outputs, receipt=receipt)
        except WorkerFatal:
            raise
        except BaseException as error:  # noqa: BLE001 - a MemoryError or SystemExit that escapes stops the consumer
            return self._verdicts.settle(attempt, error)

    def _admitted(self, ref: JobRef, line: bytes) -> InpaintJob:
        return self._tenants.admit(line, tenant=ref.tenant, batch_id=ref.batch_id)

    # One attempt

    def _render(self, attempt: Attempt, line: bytes, lease: JobLease) -> tuple[tuple[Output, ...], Receipt | None]:
        with ExitStack() as held:  # the job's weights, until its pictures are there
            return self._painted(attempt, line, lease, held)

    def _painted(
        self, attempt: Attempt, line: bytes, lease: JobLease, held: ExitStack
    ) -> tuple[tuple[Output, ...], Receipt | None]:
        if attempt.claim.crashes >= self._settings.max_crashes:
            raise WorkerCrashed(
                f"The job took down {attempt.claim.crashes} workers and was given up; check its inputs."
            )
        job = attempt.job = self._admitted(attempt.ref, line)
        if job.model != self._settings.model:
            raise UnknownModel(f"This worker renders {self._settings.model!r}, not {job.model!r}.")
        if job.deadline is not None and job.deadline <= datetime.now(UTC):
            raise DeadlineExceeded(f"The deadline {job.deadline.isoformat()} passed before the job was begun.")
        if self._skips(attempt, job):
            return (), None
        seed = attempt.seed = keys.seed(attempt.ref.job_id) if job.seed is None else job.seed
        with attempt.stage("fetch"):
            image = self._fetch(attempt, "image", job.image, lease)
            mask = self._fetch(attempt, "mask", job.mask, lease) if job.mask else None
            refs = _brought(job)
            assets = held.enter_context(self._bank.hold(refs, progress=lease.moved, since=attempt.claimed))
            brought = tuple(zip(refs, assets, strict=True))
            attempt.lora_hashes |= {ref.path: asset.sha256 for ref, asset in brought}
            loras, embeddings = brought[: len(job.loras)], brought[len(job.loras) :][: len(job.embeddings)]
            ip_adapter = self._ip_adapter(job.ip_adapter, assets[-1], lease) if job.ip_adapter else None
        with attempt.stage("decode"), lease.within(self._settings.stage_seconds):
            source = images.decode(
                image, mask, polarity=job.mask_polarity, max_pixels=self._settings.max_image_pixels,
                image_name=job.image, mask_name=job.mask or "",
                fill_holes=job.fill_holes, output_format=job.output_format, progress=lease.moved,
            )  # fmt: skip
            box = images.edit_box(source.mask, job.padding_mask_crop)
            region_size = (box[2] - box[0], box[3] - box[1])
            bucket = (
                (job.width, job.height)
                if job.width and job.height
                else images.choose_bucket(self._settings.buckets(), region_size)
            )
            region = images.cut(source, bucket, padding=job.padding_mask_crop, grow=job.grow_mask, paste=job.paste)
            attempt.warnings += source.warnings
            lease.moved()
        if self._prompt_length is not None:
            attempt.warnings += self._prompt_length.warnings(job, embeddings)
        request = self._request(attempt, RenderRequest(
            job, region.image, region.mask, seed, lease.moved, loras, embeddings, ip_adapter
        ))  # fmt: skip
        with lease.follow(self._renderer.progress), attempt.span("render"):
            submitted = source.mask.resize(region.mask.size, Image.Resampling.BOX, box=region.box)
            judged = gatekeeper.paint(self._renderer.render, request, submitted, self._settings)
        rendered = judged.rendered
        attempt.needs_review, attempt.rerenders = judged.needs_review, judged.rerenders
        attempt.timings |= rendered.timings
        attempt.lora_swap_seconds = rendered.lora_swap_seconds
        attempt.lora_mode = rendered.lora_mode
        attempt.warnings += rendered.warnings
        with attempt.stage("encode"), lease.within(self._settings.stage_seconds):
            files = []
            for painted in rendered.images:
                picture = images.paste(
                    source, region, painted, feather_px=job.mask_blur, preserve=job.preserve_unmasked
                )
                lease.moved()
                files.append(images.encode(picture, job.output_format, job.output_quality, lease.moved))
                lease.moved()
        with attempt.stage("store"):
            outputs, receipts = [], []
            for index, data in enumerate(files):
                try:
                    uri, data = self._outputs.write(attempt, job, index, data, lease)
                except OutputExists:
                    if self._skips(attempt, job):  # another was quicker
                        return (), None
                    raise
                with lease.within(self._settings.stage_seconds):
                    receipts.append(images.receipt(source, data, region, lease.moved))
                lease.moved()
                outputs.append(
                    Output(
                        uri=uri,
                        sha256=sha256(data).hexdigest(),
                        bytes=len(data),
                        width=source.image.width,
                        height=source.image.height,
                        seed=judged.seeds[index],
                        scores=judged.scores[index],
                    )
                )
        worst = max(receipts, key=lambda r: r.max_abs_diff_outside)
        return tuple(outputs), worst if job.preserve_unmasked else None

    def _skips(self, attempt: Attempt, job: InpaintJob) -> bool:
        if job.if_exists != "skip" or not (there := self._outputs.there(attempt.ref, job)):
            return False
        attempt.warnings += (skip_warning(there),)
        return True

    def _request(self, attempt: Attempt, request: RenderRequest) -> RenderRequest:
        """The same request with what a preempted attempt left; it stops when the worker must go before its end."""

        def preempted() -> bool:
            if self._drain_by is None:
                return False
            return self._renderer.estimate_seconds(request) > self._drain_by - time.monotonic()

        resume = self._verdicts.saved_state(attempt.ref) if attempt.claim.saved else None
        return replace(request, preempted=preempted, resume=resume)

    def _fetch(self, attempt: Attempt, what: str, uri: str, lease: JobLease) -> bytes:
        data = self._store.get(uri, max_bytes=self._settings.max_image_bytes, progress=lease.moved).data
        attempt.hashes[what] = sha256(data).hexdigest()
        return data

    def _ip_adapter(self, ref: IpAdapterRef, asset: Asset, lease: JobLease) -> tuple[IpAdapterRef, Asset, Image.Image]:
        picture = self._store.get(ref.image, max_bytes=self._settings.max_image_bytes, progress=lease.moved).data
        with lease.within(self._settings.stage_seconds):
            return ref, asset, images.decode_image(picture, max_pixels=self._settings.max_image_pixels, name=ref.image)


def _brought(job: InpaintJob) -> tuple[LoraRef | EmbeddingRef | IpAdapterRef, ...]:
    """What the job brings besides pictures, its IP-Adapter last."""
    return (*job.loras, *job.embeddings, *((job.ip_adapter,) if job.ip_adapter else ()))


def _bank(settings: Settings, store: ObjectStore, renderer: Renderer) -> LoraBank:
    return LoraBank(
        store,
        lambda data: renderer.read_lora(data),  # asked for when it is needed: a renderer that paints nothing has none
        device=renderer.device,
        budgets=Budgets(
            device=settings.lora_device_bytes,
            ram=settings.lora_ram_bytes,
            disk=settings.lora_disk_bytes,
            file=settings.max_lora_bytes,
        ),
        folder=settings.lora_disk_path,
        others={
            EmbeddingRef: Kind(lambda data: renderer.read_embedding(data), EmbeddingInvalid),
            IpAdapterRef: Kind(lambda data: renderer.read_ip_adapter(data), CheckpointInvalid),
        },
        threads=max(4, settings.concurrency),
    )
