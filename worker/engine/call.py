"""One call of the pipeline, as data: every argument that shapes the picture, with its default."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.engine.image_processor import Pictures
from worker.engine.noise import Generators


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `StableDiffusionInpaintPipeline.__call__`; that method's docstring explains each.

    `B` below is `batch_size` (prompts), `N` is `rows` = B × `num_images_per_prompt` (pictures made).
    """

    prompt: str | list[str] | None = None
    image: Pictures | None = None
    mask_image: Pictures | None = None
    masked_image_latents: torch.Tensor | None = None
    height: int | None = None
    width: int | None = None
    padding_mask_crop: int | None = None
    strength: float = 1.0
    num_inference_steps: int = 50
    timesteps: list[int] | None = None
    sigmas: list[float] | None = None
    guidance_scale: float = 7.5
    negative_prompt: str | list[str] | None = None
    num_images_per_prompt: int = 1
    eta: float = 0.0
    generator: Generators = None
    latents: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: list[torch.Tensor] | None = None
    output_type: str = "pil"
    cross_attention_kwargs: dict[str, Any] | None = None
    clip_skip: int | None = None

    def sized(self, side: int) -> "Call":
        """With `side` for a missing height or width."""
        height, width = (side if given is None else given for given in (self.height, self.width))
        return replace(self, height=height, width=width)

    @property
    def batch_size(self) -> int:
        if isinstance(self.prompt, str):
            return 1
        return len(self.prompt if self.prompt is not None else self.prompt_embeds)

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_images_per_prompt

    @property
    def lora_scale(self) -> float | None:
        return (self.cross_attention_kwargs or {}).get("scale")

    @property
    def ip_adapter_masks(self) -> tuple[torch.Tensor, ...]:
        return tuple((self.cross_attention_kwargs or {}).get("ip_adapter_masks") or ())

    @property
    def uses_ip_adapter(self) -> bool:
        return self.ip_adapter_image is not None or self.ip_adapter_image_embeds is not None
