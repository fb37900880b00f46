"""Runs to review: photographs with a plausible edit, and the results of a catalogue that used them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from PIL import ImageOps

from farm.schemas import ErrorInfo, JobResult, LoraRef, Output, Receipt, Scores
from farm.states import JobState
from producer.photos import demo_scenes

LORAS = ("cobalt", "terracotta", "linen")
TINTS = (("#0b1f5c", "#9fc4ff"), ("#4d1a0a", "#ffc9a8"), ("#3f3a2e", "#fbf4e2"))


def pictures(folder: Path, scenes: int = 24, side: int = 512) -> list[tuple[str, str, tuple[int, int]]]:
    """(before, after, size) of so many photographs; after is before, tinted inside the mask."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, scene in enumerate(demo_scenes(scenes)):
        before, mask = scene.image.convert("RGB"), scene.mask.convert("L")
        before.thumbnail((side, side))
        mask = mask.resize(before.size)
        dark, light = TINTS[number % len(TINTS)]
        after = before.copy()
        after.paste(ImageOps.colorize(before.convert("L"), dark, light), mask=mask)
        names = folder / f"{scene.custom_id}.webp", folder / f"{scene.custom_id}-after.webp"
        before.save(names[0], quality=90)
        after.save(names[1], quality=90)
        found.append((f"file://{names[0]}", f"file://{names[1]}", before.size))
    return found


def catalogue(folder: Path, count: int, *, first: int = 0, side: int = 512) -> Iterator[JobResult]:
    """`count` results: of every 20 one failed, one is to be reviewed; of every 50 one was canceled."""
    photographs = pictures(folder, min(count, 24), side)
    for n in range(first, first + count):
        before, after, (width, height) = photographs[n % len(photographs)]
        failed, canceled = n % 20 == 7, n % 50 == 33
        worst = 1.0 + (n % 7) / 5 if n % 20 == 3 else round((n * 37 % 89) / 100, 2)
        scores = Scores(
            blank=0.0, unchanged=round(worst / 3, 3), seam=round(2.5 * worst, 3), colour_shift=9.5, worst=worst
        )
        output = Output(
            uri=after, sha256="0" * 64, bytes=1000, width=4 * width, height=4 * height, seed=1000 + n, scores=scores
        )
        status = JobState.FAILED if failed else JobState.CANCELED if canceled else JobState.SUCCEEDED
        ended = status is JobState.SUCCEEDED
        yield JobResult(
            job_id=f"{n:032x}", tenant="default", batch_id="b" * 32, custom_id=f"sku-{10_000 + n}", status=status,
            model="sd15-inpaint", image=before, prompt=("studio table top in soft light", "")[n % 9 == 0],
            loras=(LoraRef(path=f"s3://models/{LORAS[n % 3]}.safetensors", scale=(1.0, 0.8)[n % 2]),) if n % 4 else (),
            outputs=(output,) if ended else (),
            error=_error(status, n), receipt=Receipt(max_abs_diff_outside=0, pixels_outside=90_000) if ended else None,
            needs_review=ended and worst > 1, rerenders=2 if worst > 1 else 0, seed=1000 + n,
            timings={"denoise": 1.4, "total": 1.5 + (n * 13 % 40) / 10}, finished_at=datetime(2026, 11, 1, tzinfo=UTC),
        )  # fmt: skip


def _error(status: JobState, n: int) -> ErrorInfo | None:
    if status is JobState.CANCELED:
        return ErrorInfo(code="Canceled", message="Its batch was canceled.")
    if status is JobState.FAILED:
        code = ("MaskEmpty", "InputNotFound")[n // 20 % 2]
        return ErrorInfo(code=code, message="The mask selects nothing; paint white where to edit.")
    return None
