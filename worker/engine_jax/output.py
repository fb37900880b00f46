"""What a call gives back."""

from dataclasses import dataclass, replace
from typing import Any, Self

from worker.engine.output import StableDiffusionPipelineOutput


@dataclass
class FlaxStableDiffusionPipelineOutput(StableDiffusionPipelineOutput):
    """`images`: float32 in 0..1, ``[devices, n, H, W, 3]`` of a sharded call, else ``[n, H, W, 3]``.

    `nsfw_content_detected`: one bool a picture, in the order of the batch; None without a safety checker.
    """

    def replace(self, **updates: Any) -> Self:
        """A copy with these fields changed."""
        return replace(self, **updates)
