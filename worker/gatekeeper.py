"""Between renderer and store: every picture is judged, and what is rejected painted again with another seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from PIL import Image

from farm.config import Settings
from farm.schemas import InpaintJob, Scores
from worker.gate import Limits, accept, judge

if TYPE_CHECKING:
    from worker.runner import Rendered, RenderRequest

log = logging.getLogger(__name__)

# What the engine itself finds wrong with a picture; another seed may do better.
_HOPEFUL = frozenset({"NonFiniteOutput", "BlackOutput"})


@dataclass(frozen=True)
class Judged:
    """What is to be written: each picture with the seed that made it and its scores."""

    rendered: Rendered  # all renders together: their seconds are added, their warnings joined
    seeds: tuple[int, ...]
    scores: tuple[Scores, ...]
    rerenders: int
    needs_review: bool


def paint(
    render: Callable[[RenderRequest], Rendered], request: RenderRequest, mask: Image.Image, settings: Settings
) -> Judged:
    """Render the request, and what the gate rejects of it up to `retries` times more, each time with `another_seed`.

    `mask` is the submitted one (mode L, the request's size). Of a picture that is rejected every time the best is
    taken, and needs review. Raises what `render` raises; NonFiniteOutput and BlackOutput only from the last try.
    """
    limits, tries = Limits.of(settings), retries(request.job, settings)
    best: dict[int, tuple[Image.Image, int, Scores]] = {}
    parts: list[Rendered] = []
    wanted = list(range(request.job.num_images_per_prompt))
    for number in range(tries + 1):
        seed = request.seed if number == 0 else another_seed(request.seed, number)
        try:
            part = render(_for(request, len(wanted), seed) if number else request)
        except Exception as error:
            if getattr(error, "code", "") not in _HOPEFUL or (number == tries and not best):
                raise
            log.warning("the render with seed %d gave no picture: %s", seed, error)
            continue
        parts.append(part)
        for place, picture, made in zip(wanted, part.images, range(seed, seed + len(wanted)), strict=True):
            fitting = picture.convert("RGB").resize(request.image.size)  # as it will be pasted
            scores = judge(request.image, mask, fitting, grown=request.mask, limits=limits)
            if place not in best or scores.worst < best[place][2].worst:
                best[place] = picture, made, scores
        wanted = [place for place in wanted if not accept(best[place][2], limits)]
        if not wanted:
            break
        if number < tries:
            log.info("the gate rejects %d pictures; they are painted again with another seed", len(wanted))
    pictures, seeds, scores = zip(*(best[place] for place in sorted(best)), strict=True)
    return Judged(_together(parts, list(pictures)), seeds, scores, number, bool(wanted))


def retries(job: InpaintJob, settings: Settings) -> int:
    """How often a rejected picture of the job is painted again. A named seed is a wish for that very picture."""
    if job.gate_retries is not None:
        return job.gate_retries
    return settings.gate_retries if job.seed is None else 0


def another_seed(seed: int, number: int) -> int:
    """The seed of try `number`: from the first one's, so that a second attempt at the job makes the same pictures."""
    return int(sha256(f"{seed}/{number}".encode()).hexdigest()[:8], 16)


def _for(request: RenderRequest, count: int, seed: int) -> RenderRequest:
    return replace(request, job=request.job.model_copy(update={"num_images_per_prompt": count}), seed=seed)


def _together(parts: list[Rendered], pictures: list[Image.Image]) -> Rendered:
    stages = dict.fromkeys(stage for part in parts for stage in part.timings)
    return replace(
        parts[-1],
        images=pictures,
        timings={stage: sum(part.timings.get(stage, 0.0) for part in parts) for stage in stages},
        lora_swap_seconds=sum(part.lora_swap_seconds for part in parts),
        lora_mode="+".join(sorted({mode for part in parts for mode in part.lora_mode.split("+") if mode})),
        warnings=tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
    )
