"""What is painted: jobs with a picture, a text, a LoRA and a seed of their own, so that no cache finds it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.engine.pictures import hole, picture

_STRENGTH = 1.0  # of a layer's change beside the layer's own weight, of norms


@dataclass(frozen=True, eq=False)
class Lora:
    """As a file holds it: `tensors` in diffusers' format, of the UNet only, which is what hotswap takes."""

    name: str
    rank: int
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def make_lora(shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int, dtype: torch.dtype = torch.float32) -> Lora:
    """A LoRA on the UNet's layers of these shapes, strong enough to be seen."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, (rows, *rest) in shapes.items():
        columns = torch.Size(rest).numel()
        down = torch.randn(rank, columns, generator=draw) / columns**0.5
        up = torch.randn(rows, rank, generator=draw) * (_STRENGTH / (3 * rank) ** 0.5)
        spread = [1] * (len(rest) - 1)
        tensors[f"unet.{name}.lora_A.weight"] = down.view(rank, *rest).to(dtype)
        tensors[f"unet.{name}.lora_B.weight"] = up.view(rows, rank, *spread).to(dtype)
    return Lora(f"rank {rank}, seed {seed}", rank, tensors)


class NewLoras:
    """LoRAs that were never used before, without end, made outside what is timed."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int, dtype: torch.dtype):
        self._shapes, self._rank, self._dtype, self._seeds = shapes, rank, dtype, count(1000 * seed + 1)

    def __call__(self) -> Lora:
        return make_lora(self._shapes, self._rank, next(self._seeds), self._dtype)


@dataclass(frozen=True)
class Job:
    """One call: `images` pictures of one prompt, from `seed` on."""

    seed: int
    steps: int
    side: int
    guidance_scale: float = 7.5
    images: int = 1

    @property
    def rows(self) -> int:
        """Of a step through the UNet."""
        return self.images * (2 if self.guidance_scale > 1 else 1)

    @property
    def row_steps(self) -> int:
        return self.rows * self.steps

    @property
    def prompt(self) -> str:
        return f"photo {self.seed} of a shoe"

    @property
    def picture(self) -> Image.Image:
        return picture(self.side, self.side, seed=self.seed)

    @property
    def mask(self) -> Image.Image:
        return hole(self.side, self.side)

    def arguments(self) -> dict[str, Any]:
        """Of the call, the same for both pipelines: fresh generators each time."""
        return {
            "prompt": self.prompt,
            "negative_prompt": "blurred",
            "image": [self.picture] * self.images,
            "mask_image": [self.mask] * self.images,
            "height": self.side,
            "width": self.side,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "num_images_per_prompt": self.images,
            "generator": [torch.Generator().manual_seed(self.seed + k) for k in range(self.images)],
        }
