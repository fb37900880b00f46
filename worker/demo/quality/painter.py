"""The demo's model at work on held-out scenes, many rows a call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch

from worker.demo.scenes import Scene
from worker.engine import StableDiffusionInpaintPipeline

SEED: Final = 0  # of the run whose weights are shipped: what is held out from it is `series(SEED, "quality")`
STEPS: Final = 12
GUIDANCE: Final = 1.0  # the model's own distribution: more makes colours stronger and textures poorer
_ROWS: Final = 20  # of one call: enough to keep the cores busy, few enough to stay in their caches


class Order(NamedTuple):
    """What to repaint (the scene's mask), with which words, from which noise."""

    scene: Scene
    prompt: str
    seed: int


class Painter:
    """`checkpoint` in diffusers' layout, `loras` a folder of `<look>.safetensors`."""

    def __init__(self, checkpoint: Path, loras: Path, *, steps: int = STEPS, guidance: float = GUIDANCE):
        self._pipe = StableDiffusionInpaintPipeline.from_pretrained(checkpoint)
        self._pipe.set_progress_bar_config(disable=True)
        self._loras, self._steps, self._guidance = loras, steps, guidance

    def paint(self, orders: Sequence[Order], look: str | None = None) -> np.ndarray:
        """What the model makes of each, nothing pasted over it: [n, 3, h, w] in 0…1. All are of one size.

        `look`: the LoRA that is on.
        """
        if look is not None:
            self._pipe.load_lora_weights(self._loras / f"{look}.safetensors", adapter_name=look)
        try:
            parts = [self._call(orders[start : start + _ROWS]) for start in range(0, len(orders), _ROWS)]
        finally:
            self._pipe.unload_lora_weights()
        return np.concatenate(parts)

    def _call(self, orders: Sequence[Order]) -> np.ndarray:
        height, width = orders[0].scene.mask.shape
        pictures = self._pipe(
            prompt=[order.prompt for order in orders],
            image=[order.scene.image() for order in orders],
            mask_image=[order.scene.mask_image() for order in orders],
            generator=[torch.Generator().manual_seed(order.seed) for order in orders],
            height=height,
            width=width,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            output_type="np",
        ).images
        return np.asarray(pictures).transpose(0, 3, 1, 2)


def pasted(order: Order, painted: np.ndarray) -> np.ndarray:
    """The edit as a user gets it: [3, h, w] in 0…1, the scene's own pixels wherever the mask keeps them."""
    return np.where(order.scene.mask > 0, painted, order.scene.picture.astype(np.float32) / 255)
