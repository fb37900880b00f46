"""A job's pictures in the making on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from farm.errors import NsfwContent
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.request import Request
from worker.runner import RenderRequest
from worker.saved_state import SavedState


class Painting:
    """All of a job's pictures as one request of so many rows, or with `singly` as one request each, which needs the
    memory of one. Both give the same pictures, since each draws its noise from a generator of its own.
    """

    def __init__(self, pipe: StableDiffusionInpaintPipeline, state: SavedState):
        self._pipe = pipe
        self.state = state

    @classmethod
    def begin(
        cls, pipe: StableDiffusionInpaintPipeline, request: RenderRequest, extras: dict[str, Any], *, singly: bool
    ) -> Painting:
        """Text and picture encoded, noise drawn. `pipe.scheduler` is the job's already."""
        seeds = tuple(request.seed + index for index in range(request.job.num_images_per_prompt))
        groups = [(seed,) for seed in seeds] if singly else [seeds]
        states = tuple(_prepare(pipe, request, group, extras) for group in groups)
        return cls(pipe, SavedState(states, singly))

    @property
    def done(self) -> bool:
        return all(one.done for one in self.state.requests)

    @property
    def step_index(self) -> int:
        """Model evaluations behind each picture."""
        return self.state.requests[0].step_index

    @property
    def evaluations_left(self) -> int:
        """Of all requests together."""
        return sum(one.num_timesteps - one.step_index for one in self.state.requests)

    def step(self) -> None:
        """Every picture one model evaluation further."""
        stepped = tuple(self._pipe.denoise_step([one])[0] for one in self.state.requests)
        self.state = replace(self.state, requests=stepped)

    def pictures(self) -> list[Image.Image]:
        """Decode and judge. Raises the engine's NonFiniteOutput and BlackOutput, and NsfwContent."""
        pictures: list[Image.Image] = []
        for one in self.state.requests:
            output = self._pipe.finish_request(one)
            if any(output.nsfw_content_detected or ()):
                raise NsfwContent("The checkpoint's safety checker flagged the picture; change the prompt or the seed.")
            pictures += output.images
        return pictures


@contextmanager
def economical(pipe: StableDiffusionInpaintPipeline) -> Iterator[None]:
    """Within, attention takes less memory at once. (One request a picture has the VAE sliced already.)"""
    pipe.enable_attention_slicing()
    try:
        yield
    finally:
        pipe.disable_attention_slicing()


def _prepare(
    pipe: StableDiffusionInpaintPipeline, request: RenderRequest, seeds: tuple[int, ...], extras: dict[str, Any]
) -> Request:
    job, count = request.job, len(seeds)
    prepared = pipe.prepare_request(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        # One copy for each picture: each then draws from its own generator only, and is that seed's picture.
        image=[request.image] * count,
        mask_image=[request.mask] * count,
        width=request.image.width,
        height=request.image.height,
        strength=job.strength,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        num_images_per_prompt=count,
        eta=job.eta,
        # On the CPU and one an image, so that the noise is the same on every device and in every batch.
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        clip_skip=job.clip_skip,
        **extras,
    )
    # The one scheduler with a random path of its own (DPMSolverSDE) takes the same seeds.
    return replace(prepared, state=replace(prepared.state, seed=seeds))
