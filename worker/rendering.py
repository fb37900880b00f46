"""The render that has the device: how far it is, how long it took, how long it will still take."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.guidance import is_guided
from worker.pace import Pace, Shape
from worker.painting import Painting
from worker.runner import RenderRequest


@dataclass(eq=False)
class Rendering:
    """`metered` is False for the warm-up's, which no metric counts. `timings`: seconds by stage."""

    request: RenderRequest
    metered: bool
    painting: Painting | None = None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def shape_of(pipe: StableDiffusionInpaintPipeline, request: RenderRequest, *, singly: bool) -> Shape:
    """What one model evaluation takes through the UNet: all of the job's pictures, or with `singly` one."""
    pictures = 1 if singly else request.job.num_images_per_prompt
    guided = is_guided(request.job.guidance_scale, pipe.unet.config.time_cond_proj_dim)
    return Shape(request.image.width, request.image.height, pictures * (2 if guided else 1))


class Forecast:
    """Learns what the stages of a render take (`observe`), and says what a request will take, in seconds."""

    def __init__(self, pipe: StableDiffusionInpaintPipeline):
        self._pipe, self._pace = pipe, Pace()

    def observe(self, rendering: Rendering, stage: str, seconds: float, *, evaluations: int = 0) -> None:
        """`seconds` of a stage, or of so many model evaluations."""
        state = rendering.painting.state
        shape = shape_of(self._pipe, rendering.request, singly=state.singly)
        self._pace.observe(stage, shape, seconds / (evaluations or len(state.requests)))

    def whole(self, request: RenderRequest, evaluations: int) -> float:
        """Seconds from the first tensor to the pictures; infinity where nothing was observed."""
        shape = shape_of(self._pipe, request, singly=False)
        ends = self._pace.seconds("vae_encode", shape) + self._pace.seconds("vae_decode", shape)
        return ends + evaluations * self._pace.seconds("denoise", shape)

    def left(self, rendering: Rendering, painting: Painting) -> float:
        """Seconds from the current step to the pictures."""
        shape = shape_of(self._pipe, rendering.request, singly=painting.state.singly)
        seconds = len(painting.state.requests) * self._pace.seconds("vae_decode", shape)
        if evaluations := painting.evaluations_left:
            seconds += evaluations * self._pace.seconds("denoise", shape)
        return seconds
