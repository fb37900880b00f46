"""Run in a process of its own, since the number of devices is set before JAX is: prints what it found, as JSON.

python -m tests.engine_jax.two_devices CHECKPOINT
"""

import json
import math
import sys

import jax

from farm import metrics
from farm.config import load_settings
from tests.engine.renderer_bench import make_request, pixels
from tests.engine_jax.light_networks import lighten
from worker.engine.stopwatch import Work
from worker.jax_renderer import JaxRenderer


def main(checkpoint: str) -> dict[str, object]:
    renderer = JaxRenderer(load_settings(model_path=checkpoint, size_buckets=["64x64"]))
    lighten(renderer)
    told: list[int] = []
    before = metrics.denoise_steps._value.get()
    rendered = renderer.render(make_request(seed=5, num_images_per_prompt=3, on_step=lambda: told.append(1)))
    denoised = metrics.denoise_steps._value.get() - before
    return {
        "devices": jax.device_count(),
        "rounds": {count: _rounds(renderer, count) for count in (1, 2, 3)},
        "steps_told": len(told),
        "denoised": denoised,
        "pictures": [picture.tolist() for picture in pixels(rendered)],
    }


def _rounds(renderer: JaxRenderer, count: int) -> int:
    """In how many a job of so many pictures is expected to be painted."""
    one = renderer._pace
    beside = sum(one.seconds(stage, Work(64, 64, 1)) for stage in ("vae_encode", "vae_decode"))
    request = make_request(num_images_per_prompt=count)
    rounds = renderer.estimate_seconds(request) / (beside + 3 * one.seconds("denoise", Work(64, 64, 2)))
    assert math.isclose(rounds, round(rounds))
    return round(rounds)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
