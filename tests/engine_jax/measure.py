"""What compiling costs, and a step beside the torch engine's, of the demo's model on this machine.

python -m tests.engine_jax.measure
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from PIL import Image

from worker.demo.shipped import CHECKPOINT
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine_jax import FlaxStableDiffusionInpaintPipeline

_STEPS = (2, 12)  # a step's time is the difference, so that texts and pictures are not in it
_REPEATS = 5
_SIDE = 128


class Took(NamedTuple):
    """Seconds by the clock, and of all threads together: the latter say something on a busy machine, too."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.3f} s, {self.cpu:.3f} s of CPU"


def measured(do: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    do()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    phases: dict[str, float] = {}

    def listen(event: str, took: float, **_: object) -> None:
        phases[event.rsplit("/", 1)[-1]] = phases.get(event.rsplit("/", 1)[-1], 0.0) + took

    jax.monitoring.register_event_duration_secs_listener(listen)
    pipeline, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(CHECKPOINT)
    engine = StableDiffusionInpaintPipeline.from_pretrained(CHECKPOINT)
    engine.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8))
    mask = Image.new("L", (_SIDE, _SIDE), 255)
    ids, masked, masks = pipeline.prepare_inputs("a studio", picture, mask)

    def twin(steps: int) -> None:
        pipeline(ids, masks, masked, params, jax.random.PRNGKey(0), steps, _SIDE, _SIDE, 2.0)

    def torchs(steps: int) -> None:
        engine("a studio", picture, mask, height=_SIDE, width=_SIDE, num_inference_steps=steps, guidance_scale=2.0)

    print(f"{_SIDE} px, 2 rows, {torch.get_num_threads()} threads, jax {jax.__version__}, torch {torch.__version__}")
    print(f"first call {measured(lambda: twin(_STEPS[0]))}")
    print("  of which " + ", ".join(f"{name} {took:.1f}" for name, took in phases.items() if took > 0.5))
    torchs(_STEPS[0])
    found: dict[str, list[Took]] = {"jax": [], "torch": []}
    for _ in range(_REPEATS):  # turn about, so that both meet the same machine
        for name, do in (("jax", twin), ("torch", torchs)):
            few, many = (measured(lambda do=do, steps=steps: do(steps)) for steps in _STEPS)
            found[name].append(Took(*((b - a) / (_STEPS[1] - _STEPS[0]) for a, b in zip(few, many, strict=True))))
    for name, times in found.items():
        print(f"{name}: a step {Took(*(statistics.median(column) for column in zip(*times, strict=True)))}")


if __name__ == "__main__":
    main()
