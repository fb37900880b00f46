"""The render of a farm in memory: what a worker promises, without a model."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from PIL import Image, ImageChops, ImageOps

import farm
from farm import keys
from farm.config import Settings
from farm.errors import DeadlineExceeded, InputNotFound, LoraHashMismatch, LoraNotFound, ObjectExists, OutputExists
from farm.ledger import JobRef
from farm.pictures import open_picture, recognised
from farm.schemas import ErrorInfo, Hashes, InpaintJob, JobResult, LoraRef, Output, Receipt
from farm.states import JobState
from farm.storage import ObjectStore
from farm.weights import read_header, refuse_non_finite, refuse_pickle
from producer.inspection import Inspected, encoded, inspect

_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "avif": "image/avif", "tiff": "image/tiff"}


class FakeRenderer:
    """`seconds_per_image` is what its results say that the device took."""

    def __init__(self, settings: Settings, store: ObjectStore, *, seconds_per_image: float):
        self._settings, self._store, self._seconds = settings, store, seconds_per_image

    def render(self, ref: JobRef, job: InpaintJob, attempt: int) -> JobResult:
        """Write the job's pictures; its result. Raises InvalidInput and its kinds, and DeadlineExceeded."""
        if job.deadline is not None and job.deadline <= datetime.now(UTC):
            raise DeadlineExceeded(f"The deadline {job.deadline.isoformat()} passed before the job was begun.")
        image, mask = self._bytes(job.image), self._bytes(job.mask) if job.mask else None
        most = self._settings.max_image_pixels
        source = inspect(image, mask, polarity=job.mask_polarity, max_pixels=most, fill_holes=job.fill_holes)
        hashes = Hashes(
            image=_digest(image), mask=_digest(mask) if mask else None, checkpoint=_digest(b"producer.testing"),
            loras={lora.path: self._lora(lora) for lora in job.loras},
        )  # fmt: skip
        seed = keys.seed(ref.job_id) if job.seed is None else job.seed
        outputs, worst = [], 0
        for number in range(job.num_images_per_prompt):
            output, difference = self._picture(ref, job, source, number, seed + number)
            outputs.append(output)
            worst = max(worst, difference)
        device = self._seconds * len(outputs)
        outside = source.edits.histogram()[0]
        return _result(
            ref, job, JobState.SUCCEEDED, attempt=attempt, seed=seed, hashes=hashes, warnings=source.warnings,
            outputs=tuple(outputs), timings={"denoise": device, "total": device},
            receipt=Receipt(max_abs_diff_outside=worst, pixels_outside=outside) if job.preserve_unmasked else None,
        )  # fmt: skip

    def _bytes(self, uri: str) -> bytes:
        return self._store.get(uri, max_bytes=self._settings.max_image_bytes).data

    def _lora(self, lora: LoraRef) -> str:
        refuse_pickle(lora.path)
        try:
            data = self._store.get(lora.path, max_bytes=self._settings.max_lora_bytes).data
        except InputNotFound:
            raise LoraNotFound(f"There is no weights file at {lora.path}; check the address.") from None
        digest = _digest(data)
        if lora.sha256 not in (None, digest):
            raise LoraHashMismatch(f"The file at {lora.path} has sha256 {digest}, the job wants {lora.sha256}.")
        refuse_non_finite(data, read_header(data))
        return digest

    def _picture(self, ref: JobRef, job: InpaintJob, source: Inspected, number: int, seed: int) -> tuple[Output, int]:
        picture = ImageChops.add_modulo(source.image, Image.new("RGB", source.image.size, _colour(job, seed)))
        picture = Image.composite(picture, source.image, source.edits)
        data = encoded(picture, job.output_format, job.output_quality)
        uri = keys.output(self._settings.store, job, ref.batch_id, number, ref.generation)
        own = {"job": ref.job_id, "generation": str(ref.generation), "sha256": _digest(data)}
        try:
            self._store.put(uri, data, content_type=_TYPES[job.output_format], metadata=own, create_only=True)
        except ObjectExists:
            there = self._store.get(uri, max_bytes=self._settings.max_image_bytes)
            if dict(there.metadata) != own:
                raise OutputExists(f"{uri} is there already and is another job's; choose another output.") from None
        output = Output(
            uri=uri, sha256=_digest(data), bytes=len(data), width=picture.width, height=picture.height, seed=seed
        )
        return output, _difference_outside(source, data)


def failed(ref: JobRef, job: InpaintJob | None, state: JobState, error: ErrorInfo, *, attempt: int) -> JobResult:
    """The result of a job that came to nothing."""
    return _result(ref, job, state, attempt=attempt, error=error)


def _result(ref: JobRef, job: InpaintJob | None, state: JobState, **more: Any) -> JobResult:
    return JobResult(
        job_id=ref.job_id, tenant=ref.tenant, batch_id=ref.batch_id, generation=ref.generation, status=state,
        model=ref.model, custom_id=job.custom_id if job else "", image=job.image if job else "",
        mask=job.mask if job else None, prompt=job.prompt if job else "", loras=job.loras if job else (),
        metadata=job.metadata if job else {}, version=farm.__version__, device="fake", worker="producer.testing",
        finished_at=datetime.now(UTC), **more,
    )  # fmt: skip


def _colour(job: InpaintJob, seed: int) -> tuple[int, int, int]:
    """What is added to every channel inside the mask: from 64 to 191, so that no pixel there stays what it was."""
    words = json.dumps([seed, job.prompt, job.negative_prompt, [[lora.path, lora.scale] for lora in job.loras]])
    red, green, blue = sha256(words.encode()).digest()[:3]
    return 64 + red % 128, 64 + green % 128, 64 + blue % 128


def _difference_outside(source: Inspected, written: bytes) -> int:
    """The largest difference of a channel outside the mask, of what was written from the source."""
    out = open_picture(written, recognised(written)).convert("RGB")
    difference = Image.new("RGB", out.size)
    difference.paste(ImageChops.difference(out, source.image), mask=ImageOps.invert(source.edits))
    return max(value % 256 for value, pixels in enumerate(difference.histogram()) if pixels)


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
