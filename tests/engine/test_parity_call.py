"""Every argument of the call, one row a use of it: the latents equal diffusers'."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.comparison import assert_parity
from tests.engine.pictures import hole, picture

Arguments = dict[str, Any]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def array(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def tensor(image: Any) -> torch.Tensor:
    values = torch.from_numpy(array(image))
    return values.permute(2, 0, 1) if values.ndim == 3 else values


TWO = {"prompt": ["a cat", "a dog"]}

INPUTS: dict[str, Callable[[], Arguments]] = {
    "image of another size": lambda: {"image": picture(50, 90), "mask_image": hole(31, 47)},
    "height and width": lambda: {"height": 40, "width": 72},
    "two images, two masks": lambda: {**TWO, "image": [picture(), picture(seed=1)], "mask_image": [hole(), hole()]},
    "one image, two masks": lambda: {**TWO, "mask_image": [hole(), hole(box=(0, 0, 0.5, 0.5))]},
    "two images, one mask": lambda: {**TWO, "image": [picture(), picture(seed=1)]},
    "array": lambda: {"image": array(picture()), "mask_image": array(hole())},
    "array of another size": lambda: {"image": array(picture(48, 80)), "mask_image": array(hole(100, 30))},
    "array batch": lambda: {**TWO, "image": np.stack([array(picture()), array(picture(seed=2))])},
    "array list": lambda: {
        **TWO,
        "image": [array(picture()), array(picture(seed=2))],
        "mask_image": [array(hole())] * 2,
    },
    "array mask with channel": lambda: {"mask_image": array(hole())[..., None]},
    "array mask batch": lambda: {**TWO, "mask_image": np.stack([array(hole())] * 2)},
    "array mask of bytes": lambda: {"mask_image": np.asarray(hole())},
    "array of doubles": lambda: {"image": array(picture()).astype(np.float64)},
    "tensor": lambda: {"image": tensor(picture()), "mask_image": tensor(hole())},
    "tensor of another size": lambda: {"image": tensor(picture(48, 80))[None], "mask_image": tensor(hole(100, 30))},
    "tensor in -1..1": lambda: {"image": tensor(picture()) * 2 - 1},
    "tensor batch": lambda: {**TWO, "image": torch.stack([tensor(picture()), tensor(picture(seed=2))])},
    "tensor list": lambda: {**TWO, "image": [tensor(picture()), tensor(picture(seed=2))]},
    "tensor list of batches": lambda: {**TWO, "image": [tensor(picture())[None], tensor(picture(seed=2))[None]]},
    "tensor mask 1HW": lambda: {"mask_image": tensor(hole())[None]},
    "tensor mask BHW": lambda: {**TWO, "mask_image": torch.stack([tensor(hole())] * 2)},
    "tensor mask B1HW": lambda: {**TWO, "mask_image": torch.stack([tensor(hole())] * 2)[:, None]},
    "tensor mask list": lambda: {**TWO, "mask_image": [tensor(hole())] * 2},
    "soft mask": lambda: {"mask_image": picture().convert("L")},
    "colour mask": lambda: {"mask_image": hole().convert("RGB")},
    "empty mask": lambda: {"mask_image": hole(box=(0, 0, 0, 0))},
    "masked image latents": lambda: {"masked_image_latents": random(1, 4, 8, 8)},
    "image latents": lambda: {
        "image": random(1, 4, 8, 8),
        "masked_image_latents": random(1, 4, 8, 8, seed=1),
        "strength": 0.7,
    },
    "start latents": lambda: {"latents": random(1, 4, 8, 8)},
    "start latents, partial strength": lambda: {"latents": random(1, 4, 8, 8), "strength": 0.5},
}

TEXTS: dict[str, Callable[[], Arguments]] = {
    "list of one": lambda: {"prompt": ["a cat"]},
    "empty": lambda: {"prompt": ""},
    "over 77 tokens": lambda: {"prompt": "a very long text " * 20},
    "unicode": lambda: {"prompt": "eine Straße, 猫 🐈"},
    "negative": lambda: {"negative_prompt": "ugly, blurred"},
    "negative list": lambda: {**TWO, "negative_prompt": ["ugly", "blurred"]},
    "negative without guidance": lambda: {"negative_prompt": "ugly", "guidance_scale": 1.0},
    "three images a prompt": lambda: {"num_images_per_prompt": 3},
    "two prompts, two images each": lambda: {**TWO, "num_images_per_prompt": 2, "negative_prompt": ["x", "y"]},
    "embeds": lambda: {"prompt": None, "prompt_embeds": random(1, 77, 32)},
    "both embeds": lambda: {
        "prompt": None,
        "prompt_embeds": random(2, 60, 32),
        "negative_prompt_embeds": random(2, 60, 32, seed=1),
        "num_images_per_prompt": 2,
    },
    "embeds and negative text": lambda: {
        "prompt": None,
        "prompt_embeds": random(1, 50, 32),
        "negative_prompt": "ugly",
    },
    "text and negative embeds": lambda: {"negative_prompt_embeds": random(1, 77, 32)},
    "embeds without guidance": lambda: {"prompt": None, "prompt_embeds": random(1, 20, 32), "guidance_scale": 0.0},
}

SAMPLING: dict[str, Callable[[], Arguments]] = {
    "eta": lambda: {"eta": 0.7},
    "eta, two generators": lambda: {**TWO, "eta": 1.0, "seed": [3, 4]},
    "two generators, partial strength": lambda: {**TWO, "strength": 0.6, "seed": [3, 4]},
    "generators for images a prompt": lambda: {"num_images_per_prompt": 2, "strength": 0.6, "seed": [3, 4]},
    "list of one generator": lambda: {"seed": [3], "strength": 0.6, "eta": 0.5},
    "two images, two generators": lambda: {
        **TWO,
        "image": [picture(), picture(seed=1)],
        "seed": [3, 4],
        "strength": 0.8,
    },
    "no generator": lambda: {"seed": None, "eta": 0.5, "strength": 0.8},
    "one step": lambda: {"num_inference_steps": 1},
    "strength that leaves one step": lambda: {"num_inference_steps": 5, "strength": 0.2},
    "low guidance": lambda: {"guidance_scale": 1.2},
    "numbers of numpy": lambda: {
        "strength": np.float32(0.5),
        "guidance_scale": np.float64(3),
        "num_inference_steps": np.int64(6),
        "height": np.int32(40),
        "eta": np.float16(0.5),
    },
    "negative guidance": lambda: {"guidance_scale": -1.0},
}


def rows(table: dict[str, Callable[[], Arguments]]) -> Any:
    return pytest.mark.parametrize("arguments", table.values(), ids=table.keys())


KINDS = pytest.mark.parametrize("kind", ["inpaint", "plain"])


@KINDS
@rows(INPUTS)
def test_inputs(kind: str, arguments: Callable[[], Arguments]) -> None:
    assert_parity(kind, **{"num_inference_steps": 2, **arguments()})


@KINDS
@rows(SAMPLING)
def test_sampling(kind: str, arguments: Callable[[], Arguments]) -> None:
    assert_parity(kind, **{"num_inference_steps": 3, **arguments()})


@rows(TEXTS)
def test_texts(arguments: Callable[[], Arguments]) -> None:
    assert_parity("inpaint", **{"num_inference_steps": 2, **arguments()})


@pytest.mark.parametrize("kind", ["sd2", "distilled"])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_other_configurations(kind: str, guidance_scale: float) -> None:
    assert_parity(kind, guidance_scale=guidance_scale, strength=0.9)
