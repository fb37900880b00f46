"""The render of a farm in memory: what a worker promises, without a model."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from typing import Any, Final

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

import farm
from farm import keys
from farm.config import Settings
from farm.errors import ObjectExists
from farm.ledger import JobRef
from farm.models import read_card
from farm.outputs import refusal, signature, skip_warning, skipped_for
from farm.pictures import open_picture, probe, recognised
from farm.schemas import ErrorInfo, Hashes, InpaintJob, JobResult, LoraRef, Output, Receipt
from farm.shards import Shelf
from farm.states import JobState
from farm.storage import ObjectStore
from producer.inspection import Inspected, decoded, inspect, weights

# What of a job shapes the picture beside its seed, its image and its mask.
_LOOK: Final = {
    "model", "prompt", "negative_prompt", "loras", "embeddings", "ip_adapter", "strength", "guidance_scale",
    "num_inference_steps", "scheduler", "height", "width", "clip_skip", "eta", "padding_mask_crop", "grow_mask",
    "mask_blur",
}  # fmt: skip
WRITES_PLAIN: Final = "producer.testing writes RGB of 8 bits; of this picture a worker keeps more."


class FakeRenderer:
    """`seconds_per_image` is what its results say that the device took."""

    def __init__(self, settings: Settings, store: ObjectStore, *, seconds_per_image: float):
        self._settings, self._store, self._seconds = settings, store, seconds_per_image
        self._shelf = Shelf(store, settings.store)

    def skip(self, ref: JobRef, job: InpaintJob, attempt: int) -> JobResult | None:
        """The result of a job that is to leave what is there; None where it is to be rendered."""
        if job.if_exists != "skip" or not (there := skipped_for(self._shelf, ref, job)):
            return None
        return _result(ref, job, JobState.SUCCEEDED, attempt=attempt, warnings=(skip_warning(there),))

    def render(self, ref: JobRef, job: InpaintJob, attempt: int) -> JobResult:
        """Write the job's pictures; its result. Raises InvalidInput and its kinds."""
        image, mask = self._bytes(job.image), self._bytes(job.mask) if job.mask else None
        most = self._settings.max_image_pixels
        source = inspect(image, mask, polarity=job.mask_polarity, max_pixels=most, fill_holes=job.fill_holes)
        info = probe(image, max_pixels=most)
        warnings = source.warnings if (info.mode, info.bits) == ("RGB", 8) else (*source.warnings, WRITES_PLAIN)
        hashes = Hashes(
            image=_digest(image), mask=_digest(mask) if mask else None, checkpoint=_digest(b"producer.testing"),
            loras=self._assets(job),
        )  # fmt: skip
        seed, pasted = keys.seed(ref.job_id) if job.seed is None else job.seed, pasted_mask(job, source.edits)
        outputs, worst = [], 0
        for number in range(job.num_images_per_prompt):
            output, data = self._picture(ref, job, source.image, pasted, number, seed + number)
            outputs.append(output)
            worst = max(worst, _difference_outside(source, pasted, data))
        receipt = Receipt(
            max_abs_diff_outside=worst, pixels_outside=pasted.histogram()[0],
            outside="grown" if job.paste == "grown" else "submitted",
        )  # fmt: skip
        device = self._seconds * len(outputs)
        return _result(
            ref, job, JobState.SUCCEEDED, attempt=attempt, seed=seed, hashes=hashes, warnings=warnings,
            outputs=tuple(outputs), timings={"denoise": device, "total": device}, gpu_seconds=device,
            receipt=receipt if job.preserve_unmasked else None,
        )  # fmt: skip

    def _bytes(self, uri: str) -> bytes:
        return self._store.get(uri, max_bytes=self._settings.max_image_bytes).data

    def _assets(self, job: InpaintJob) -> dict[str, str]:
        """sha256 of every weights file, each judged; a LoRA by the model's card, too, if there is one."""
        digests = {}
        for ref in (*job.loras, *job.embeddings, *((job.ip_adapter,) if job.ip_adapter else ())):
            digests[ref.path], header = weights(self._store, ref, max_bytes=self._settings.max_lora_bytes)
            if isinstance(ref, LoraRef) and (card := read_card(self._store, self._settings.store, job.model)):
                card.table().judge(header)
        if job.ip_adapter:
            decoded(self._bytes(job.ip_adapter.image), "reference image", self._settings.max_image_pixels)
        return digests

    def _picture(
        self, ref: JobRef, job: InpaintJob, image: Image.Image, pasted: Image.Image, number: int, seed: int
    ) -> tuple[Output, bytes]:
        picture = ImageChops.add_modulo(image, Image.new("RGB", image.size, _colour(job, seed)))
        data = _encoded(Image.composite(picture, image, pasted), job.output_format, job.output_quality)
        uri = keys.output(self._settings.store, job, ref.batch_id, number, ref.generation)
        own = {**signature(ref), "sha256": _digest(data)}
        try:
            self._store.put(uri, data, content_type=f"image/{job.output_format}", metadata=own, create_only=True)
        except ObjectExists:
            there = self._store.get(uri, max_bytes=self._settings.max_image_bytes)
            if dict(there.metadata) != own:
                raise refusal(self._shelf, ref, uri, there.metadata) from None
        output = Output(
            uri=uri, sha256=_digest(data), bytes=len(data), width=image.width, height=image.height, seed=seed
        )
        return output, data


def pasted_mask(job: InpaintJob, edits: Image.Image) -> Image.Image:
    """What is painted, of a mask in mode L of 0 and 255: it, its holes and what it grows over, as the job says.

    Without `preserve_unmasked` it is the whole picture. A worker's model sees the mask at another size than the
    picture's; here `grow_mask` is in px of the picture.
    """
    if not job.preserve_unmasked:
        return Image.new("L", edits.size, 255)
    if job.fill_holes:
        around = ImageOps.expand(edits, 1, 0)
        ImageDraw.floodfill(around, (0, 0), 128)
        edits = ImageOps.crop(around, 1).point(lambda value: 0 if value == 128 else 255)
    if job.paste == "grown":
        for _ in range(job.grow_mask):
            edits = edits.filter(ImageFilter.MaxFilter(3))
    return edits


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
    look = job.model_dump_json(include=_LOOK)
    red, green, blue = sha256(f"{seed} {look}".encode()).digest()[:3]
    return 64 + red % 128, 64 + green % 128, 64 + blue % 128


def _encoded(picture: Image.Image, output_format: str, quality: int) -> bytes:
    buffer, options = BytesIO(), {} if output_format in ("png", "tiff") else {"quality": quality}
    if output_format == "webp" and quality == 100:
        options = {"lossless": True}
    picture.save(buffer, output_format.upper(), **options)
    return buffer.getvalue()


def _difference_outside(source: Inspected, pasted: Image.Image, written: bytes) -> int:
    """The largest difference of a channel outside what was pasted, of what was written from the source."""
    out = open_picture(written, recognised(written)).convert("RGB")
    difference = Image.new("RGB", out.size)
    difference.paste(ImageChops.difference(out, source.image), mask=ImageOps.invert(pasted))
    return max(value % 256 for value, pixels in enumerate(difference.histogram()) if pixels)


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()
