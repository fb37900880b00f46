"""The documentation's example, as written but for imports and paths: a local checkpoint and local pictures.

python -m tests.engine_jax.example CHECKPOINT IMAGE MASK OUT
"""

import os
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import numpy as np
import PIL
import PIL.Image

from worker.engine_jax import FlaxStableDiffusionInpaintPipeline, replicate, shard

path, img_path, mask_path, out = sys.argv[1:]


def open_image(path):
    return PIL.Image.open(path).convert("RGB")


init_image = open_image(img_path).resize((128, 128))
mask_image = open_image(mask_path).resize((128, 128))

pipeline, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(path)

prompt = "Face of a yellow cat, high resolution, sitting on a park bench"
prng_seed = jax.random.PRNGKey(0)
num_inference_steps = 5

num_samples = jax.device_count()
prompt = num_samples * [prompt]
init_image = num_samples * [init_image]
mask_image = num_samples * [mask_image]
prompt_ids, processed_masked_images, processed_masks = pipeline.prepare_inputs(prompt, init_image, mask_image)

# shard inputs and rng
params = replicate(params)
prng_seed = jax.random.split(prng_seed, jax.device_count())
prompt_ids = shard(prompt_ids)
processed_masked_images = shard(processed_masked_images)
processed_masks = shard(processed_masks)

images = pipeline(
    prompt_ids, processed_masks, processed_masked_images, params, prng_seed, num_inference_steps, jit=True
).images
images = pipeline.numpy_to_pil(np.asarray(images.reshape((num_samples,) + images.shape[-3:])))  # noqa: RUF005 as documented

for k, image in enumerate(images):
    image.save(f"{out}/{k}.png")
