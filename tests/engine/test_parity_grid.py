"""Many calls drawn from everything the call offers at once, to find what only combinations show."""

import random
from typing import Any

import pytest

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity
from tests.engine.pictures import hole, picture
from tests.engine.test_parity_schedulers import NAMES, scheduled


def drawn(seed: int) -> tuple[str, str, dict[str, Any], bool]:
    """(kind of checkpoint, scheduler, arguments, whether a LoRA is loaded), the same for a seed every time."""
    source = random.Random(seed)
    kind = source.choice(["inpaint", "plain", "sd2", "distilled", "asymmetric"])
    prompts = source.choice([1, 1, 2])
    each = 1 if kind == "asymmetric" and prompts == 1 else source.choice([1, 1, 2])
    several = kind == "asymmetric" and prompts * each > 1  # diffusers' decoder wants a picture for each result
    if several:
        each = 1
    width, height = source.choice([(64, 64), (40, 72), (57, 91)])
    arguments: dict[str, Any] = {
        "prompt": ["a red cat", "two dogs in the rain"][:prompts] if prompts > 1 else "a red cat",
        "num_images_per_prompt": each,
        "strength": source.choice([1.0, 1.0, 0.99, 0.75, 0.5]),
        "guidance_scale": source.choice([7.5, 1.5, 1.0, 0.0]),
        "num_inference_steps": source.choice([4, 5, 7]),
        "eta": source.choice([0.0, 0.0, 0.6]),
        "seed": source.choice([None, seed, list(range(seed, seed + prompts * each))]),
        "height": source.choice([64, 64, 40, 96]),
        "width": source.choice([64, 64, 56, 72]),
        "output_type": source.choice(["latent", "latent", "pt", "pil"]),
    }
    pictures = [picture(width, height, seed=seed + i) for i in range(prompts)]
    masks = [hole(width, height, (0.1 + 0.2 * i, 0.2, 0.8, 0.9)) for i in range(prompts)]
    many = several or source.random() < 0.5
    arguments["image"], arguments["mask_image"] = (pictures, masks) if many else (pictures[0], masks[0])
    if source.random() < 0.5:
        arguments["negative_prompt"] = ["ugly", "blurred"][:prompts] if prompts > 1 else "ugly"
    if prompts == 1 and source.random() < 0.25:
        arguments |= {"image": pictures[0], "mask_image": masks[0], "padding_mask_crop": 5, "output_type": "pil"}
    if source.random() < 0.2:
        arguments["cross_attention_kwargs"] = {"scale": 0.5}
    return kind, source.choice(NAMES), arguments, source.random() < 0.4


@pytest.mark.full
@pytest.mark.parametrize("seed", range(200))
def test_drawn_calls(seed: int) -> None:
    kind, scheduler, arguments, lora = drawn(seed)
    pipes = tiny_checkpoints.ours(kind), tiny_checkpoints.oracle(kind)
    if lora:
        for pipe in pipes:
            pipe.load_lora_weights(tiny_checkpoints.lora(kind, seed=seed, scale=0.1))
    try:
        with scheduled(kind, scheduler):
            assert_parity(kind, **arguments)
    finally:
        for pipe in pipes:
            pipe.unload_lora_weights()
        # diffusers remembers a call's LoRA scale and gives it to the text encoder's part of the next LoRA it loads.
        vars(pipes[1]).pop("_lora_scale", None)
