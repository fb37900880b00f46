"""The engine's safety checker with its CLIP under JAX: cosines are compiled, and judged outside."""

import jax
import numpy as np
import torch
import torch.nn.functional as F
from jax import Array
from PIL import Image

from worker.engine.image_processor import numpy_to_pil
from worker.engine.safety import StableDiffusionSafetyChecker, flags
from worker.engine_jax.bridge import Params, function


class JaxSafetyChecker:
    """`checker`: whose architecture and thresholds; the weights are given with each call."""

    def __init__(self, checker: StableDiffusionSafetyChecker, feature_extractor):
        self._checker, self._feature_extractor = checker, feature_extractor
        self._cosines = jax.jit(function(checker, _cosines))

    def __call__(self, params: Params, images: np.ndarray) -> list[bool]:
        """One flag for each of `images` ``[B, H, W, 3]``, float in 0..1."""
        pixels = self.features(numpy_to_pil(images))
        special, concepts = (np.asarray(cosines, np.float32) for cosines in self._cosines(params, pixels))
        thresholds = (self._checker.special_care_embeds_weights, self._checker.concept_embeds_weights)
        special_thresholds, concept_thresholds = (t.detach().float().numpy() for t in thresholds)
        return flags(special, special_thresholds, concepts, concept_thresholds)

    def features(self, pictures: list[Image.Image]) -> np.ndarray:
        """``[B, 3, S, S]`` as CLIP wants them, in the checker's dtype."""
        pixels = self._feature_extractor(pictures, return_tensors="np").pixel_values
        return np.asarray(pixels, dtype=_DTYPES[self._checker.dtype])


_DTYPES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: jax.numpy.bfloat16}


def _cosines(checker: StableDiffusionSafetyChecker, pixels: torch.Tensor) -> tuple[Array, Array]:
    """``[B, special]`` and ``[B, concepts]``."""
    embeds = F.normalize(checker.visual_projection(checker.vision_model(pixels).pooler_output))
    return tuple(
        embeds @ F.normalize(concepts).t() for concepts in (checker.special_care_embeds, checker.concept_embeds)
    )
