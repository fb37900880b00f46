"""The call on one device, its safety checker and its plain tuple; compiled, so no part of the short run."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from worker.engine_jax import FlaxStableDiffusionInpaintPipeline

pytestmark = pytest.mark.full

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.new("L", (64, 64), 255)


def test_a_call_on_one_device(tiny_checkpoint):
    pipe, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(tiny_checkpoint(safety_checker=True))
    assert set(params) == {"unet", "vae", "text_encoder", "safety_checker"}
    ids, masked, mask = pipe.prepare_inputs(["a cup"] * 2, [IMAGE] * 2, [MASK] * 2)

    def call(key: int, **options):
        return pipe(ids, mask, masked, params, jax.random.PRNGKey(key), 2, 64, 64, **options)

    limits = pipe.host.safety_checker.concept_embeds_weights
    with torch.no_grad():
        limits.fill_(2.0)
    whole = call(0)
    assert whole.images.shape == (2, 64, 64, 3) and whole.images.dtype == np.float32
    assert whole.nsfw_content_detected == [False, False]
    assert whole.images.min() >= 0 and whole.images.max() <= 1
    assert (call(0).images == whole.images).all() and (call(1).images != whole.images).any()
    # One scale for each picture: the first as above.
    mixed = call(0, guidance_scale=np.array([7.5, 2.0], np.float32)).images
    assert np.abs(mixed[0] - whole.images[0]).max() < 1e-5 and np.abs(mixed[1] - whole.images[1]).max() > 1e-3
    # A negative prompt is the empty one where none is given.
    empty, other = (pipe.token_ids([text] * 2) for text in ("", "a dog"))
    assert (call(0, neg_prompt_ids=empty).images == whole.images).all()
    assert (call(0, neg_prompt_ids=other).images != whole.images).any()
    with torch.no_grad():
        limits.fill_(-2.0)
    images, flags = call(0, return_dict=False)
    assert flags == [True, True] and not images.any()
