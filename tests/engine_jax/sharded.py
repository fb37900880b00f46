"""Run in a process of its own, since the number of devices is set before JAX is: prints what it found, as JSON.

python -m tests.engine_jax.sharded CHECKPOINT SIDE LORA SCALE [SCALE …]
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import torch
from PIL import Image

from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.lora import Adapter, read_lora
from worker.engine_jax import FlaxStableDiffusionInpaintPipeline, replicate, shard, unshard

COUNT, STEPS = 8, 3
compiled = []


def listen(event: str, seconds: float, **_: object) -> None:
    if event.endswith("backend_compile_duration"):
        compiled.append(seconds)


def pictures(side: int) -> tuple[list[Image.Image], list[Image.Image]]:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(COUNT)]
    rows = np.arange(side)[:, None] * np.ones(side, int)
    masks = [Image.fromarray(((rows > 5 + 3 * k) * 255).astype(np.uint8)) for k in range(COUNT)]
    return images, masks


def main(checkpoint: str, side: int, lora: str, scales: list[float]) -> dict[str, object]:
    torch.set_num_threads(1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    pipeline, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(checkpoint)
    engine = StableDiffusionInpaintPipeline.from_pretrained(checkpoint)
    engine.set_progress_bar_config(disable=True)
    images, masks = pictures(side)
    prompts = [f"picture {k}" for k in range(COUNT)]
    ids, masked, mask = pipeline.prepare_inputs(prompts, images, masks)
    keys = jax.random.split(jax.random.PRNGKey(0), jax.device_count())
    grid = side // pipeline.vae_scale_factor
    latents = np.random.default_rng(1).standard_normal((COUNT, 4, grid, grid), dtype=np.float32)

    def theirs(scale: float) -> np.ndarray:
        """The torch engine, given the same latents and the same draw of the masked pictures' posterior."""
        draws = [jax.random.normal(jax.random.split(key)[1], (COUNT // 4, grid, grid, 4)) for key in keys]
        noise = torch.from_numpy(np.concatenate(draws).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            posterior = engine.vae.encode(torch.from_numpy(np.array(masked)))
        encoded = engine.vae.config.scaling_factor * (posterior.mean + posterior.std * noise)
        return engine(
            prompt=prompts,
            image=images,
            mask_image=masks,
            height=side,
            width=side,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            latents=torch.from_numpy(latents),
            masked_image_latents=encoded,
            output_type="np",
        ).images

    def ours(params: object, scale: float, steps: int = STEPS) -> np.ndarray:
        before = len(compiled)
        made = pipeline(*args, params, keys, steps, side, side, scale, shard(latents), jit=True)
        found["compiled"].append(len(compiled) - before)
        found["shape"] = made.images.shape
        return unshard(made.images)

    found: dict[str, object] = {"devices": jax.device_count(), "compiled": [], "error": {}}
    args = (shard(ids), shard(mask), shard(masked))
    whole = replicate(params)
    adapter = Adapter(read_lora(lora, pipeline.host.lora.merger.table), 0.8, 0.8)

    plain = {scale: ours(whole, scale) for scale in scales}
    found["compiled_first"], found["compiled"] = found["compiled"], []
    with_lora = {scale: ours(pipeline.with_loras(whole, [adapter]), scale) for scale in scales}
    restored = {scale: ours(whole, scale) for scale in scales}
    ours(whole, scales[0], steps=STEPS + 2)
    for scale in scales:
        found["error"][f"{scale}"] = apart(plain[scale], theirs(scale))
        found["effect"] = apart(with_lora[scale], plain[scale])
        found["restored"] = apart(restored[scale], plain[scale])
    engine.load_lora_weights(lora, adapter_name="one")
    engine.set_adapters(["one"], [0.8])
    for scale in scales:
        found["error"][f"{scale} with LoRA"] = apart(with_lora[scale], theirs(scale))
    return found


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(one - two).max() / np.abs(two).max())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], [float(scale) for scale in sys.argv[4:]])))
