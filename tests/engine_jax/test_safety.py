"""The safety checker under JAX: the torch engine's flags."""

import numpy as np
import torch
from transformers import CLIPConfig

from tests.engine.conftest import VISION, tiny_image_processor
from worker.engine.image_processor import numpy_to_pil
from worker.engine.safety import StableDiffusionSafetyChecker
from worker.engine_jax.bridge import parameters
from worker.engine_jax.safety import JaxSafetyChecker


def test_flags_are_the_torch_engines():
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=VISION["projection_dim"]))
    random = np.random.default_rng(0)
    colours = random.random((24, 1, 1, 3), dtype=np.float32)
    images = np.clip(colours + 0.3 * random.standard_normal((24, 32, 32, 3), dtype=np.float32), 0, 1)
    features = tiny_image_processor()(numpy_to_pil(images), return_tensors="pt").pixel_values
    with torch.no_grad():
        checker.concept_embeds.copy_(torch.randn(checker.concept_embeds.shape))
        embeds = checker.visual_projection(checker.vision_model(features).pooler_output)
        checker.special_care_embeds.copy_(embeds[:3])  # three pictures are each a special concept itself
        cosines = torch.nn.functional.cosine_similarity(embeds[:, None], checker.concept_embeds[None], dim=-1)
        checker.concept_embeds_weights.fill_(cosines.amax(dim=1).median().item())
        _, expected = checker(clip_input=features, images=torch.zeros(24, 3, 4, 4))
    got = JaxSafetyChecker(checker, tiny_image_processor())(parameters(checker), images)
    assert got == expected
    assert 3 <= sum(expected) <= 21  # of both kinds
