"""What compiles in a moment, beside the torch modules that it is made of; the UNet is in the long run."""

import numpy as np
import torch

from tests.engine import tiny_checkpoints
from worker.engine_jax import FlaxStableDiffusionInpaintPipeline, replicate


def test_texts_and_latents_are_the_torch_modules():
    pipeline, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(tiny_checkpoints.folder("inpaint"))
    host, params = pipeline.host, replicate(params)
    ids = pipeline.token_ids("a cup on a table")
    random = np.random.default_rng(0)
    picture = random.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    noise = random.standard_normal((1, 4, 8, 8)).astype(np.float32)
    with torch.no_grad():
        texts = host.text_encoder(torch.from_numpy(ids)).last_hidden_state.numpy()
        posterior = host.vae.encode(torch.from_numpy(picture))
        latents = host.vae.config.scaling_factor * (posterior.mean + posterior.std * torch.from_numpy(noise)).numpy()
    for got, expected in (
        (pipeline.programs.texts(params, ids), texts),
        (pipeline.programs.latents(params, picture, noise), latents),
    ):
        assert np.abs(np.asarray(got) - expected).max() <= 1e-5 * np.abs(expected).max()
