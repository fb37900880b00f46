"""Every misuse that diffusers refuses is refused here with the argument's name; and some that it lets through to fail
later, or to make nonsense."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import generator, run
from tests.engine.pictures import hole, picture
from worker.engine.errors import InvalidParameter

EMBEDS = torch.zeros(1, 77, 32)
TENSOR_IMAGE = torch.rand(1, 3, 64, 64)

# (argument named in our error, arguments): refused by both.
REFUSED_BY_BOTH: list[tuple[str, dict[str, Any]]] = [
    ("strength", {"strength": -0.1}),
    ("strength", {"strength": 1.1}),
    ("strength", {"strength": 0.0}),
    ("strength", {"strength": 0.2, "num_inference_steps": 4}),
    ("strength", {"strength": "all"}),
    ("height", {"height": 60}),
    ("width", {"width": 100}),
    ("height", {"height": -8}),
    ("callback_steps", {"callback_steps": 0, "callback": print}),
    ("callback_steps", {"callback_steps": 1.5, "callback": print}),
    ("callback_on_step_end_tensor_inputs", {"callback_on_step_end_tensor_inputs": ["noise_pred"]}),
    ("prompt", {"prompt_embeds": EMBEDS}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": 3}),
    ("prompt", {"prompt": ("a", "b")}),
    ("prompt", {"prompt": ["a", 3]}),
    ("prompt", {"prompt": []}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 31), "negative_prompt_embeds": EMBEDS}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": torch.zeros(77, 32)}),
    ("negative_prompt", {"negative_prompt": "x", "negative_prompt_embeds": EMBEDS}),
    ("negative_prompt", {"negative_prompt": ["x"]}),
    ("negative_prompt", {"prompt": ["a", "b"], "negative_prompt": "x"}),
    ("negative_prompt", {"prompt": ["a", "b"], "negative_prompt": ["x"]}),
    ("negative_prompt", {"prompt": None, "prompt_embeds": EMBEDS.repeat(2, 1, 1), "negative_prompt": "x"}),
    ("negative_prompt_embeds", {"negative_prompt_embeds": torch.zeros(2, 77, 32)}),
    ("negative_prompt_embeds", {"negative_prompt_embeds": torch.zeros(1, 70, 32)}),
    (
        "negative_prompt_embeds",
        {"prompt": None, "prompt_embeds": EMBEDS, "negative_prompt_embeds": torch.zeros(1, 60, 32)},
    ),
    ("image", {"image": None}),
    ("mask_image", {"mask_image": None}),
    ("image", {"image": "cat.png"}),
    ("mask_image", {"mask_image": [hole(), "cat.png"]}),
    ("image", {"image": torch.rand(64, 64)}),
    ("image", {"image": picture().convert("L")}),
    ("image", {"image": picture().convert("RGBA")}),
    ("image", {"image": torch.rand(1, 2, 64, 64)}),
    ("image", {"image": [torch.rand(3, 64, 64), torch.rand(3, 32, 32)]}),
    ("image", {"image": torch.rand(1, 4, 4, 4), "masked_image_latents": torch.rand(1, 4, 8, 8), "strength": 0.5}),
    ("image", {"image": torch.rand(3, 3, 64, 64), "prompt": ["a", "b"], "strength": 0.5}),
    ("mask_image", {"mask_image": torch.rand(1, 3, 64, 64)}),
    ("mask_image", {"mask_image": [hole(), hole(), hole()], "prompt": ["a", "b"]}),
    ("mask_image", {"mask_image": [hole(), hole()], "image": [picture()] * 3, "prompt": ["a"] * 6}),
    ("masked_image_latents", {"masked_image_latents": torch.rand(1, 4, 4, 4)}),
    ("masked_image_latents", {"image": torch.rand(1, 4, 8, 8)}),
    ("image", {"padding_mask_crop": 4, "image": TENSOR_IMAGE}),
    ("mask_image", {"padding_mask_crop": 4, "mask_image": torch.ones(1, 1, 64, 64)}),
    ("mask_image", {"padding_mask_crop": 4, "mask_image": hole(32, 32)}),
    ("output_type", {"padding_mask_crop": 4, "output_type": "np"}),
    ("padding_mask_crop", {"padding_mask_crop": "wide"}),
    ("generator", {"seed": [1, 2]}),
    ("generator", {"seed": [1], "num_images_per_prompt": 2}),
    ("generator", {"generator": 42, "seed": None}),
    ("latents", {"latents": torch.rand(2, 4, 8, 8)}),
    ("latents", {"latents": torch.rand(1, 4, 4, 4)}),
    ("num_inference_steps", {"num_inference_steps": 0}),
    ("num_inference_steps", {"num_inference_steps": 10**9}),
    ("num_inference_steps", {"num_inference_steps": 1.5}),
    ("num_images_per_prompt", {"num_images_per_prompt": 0}),
    ("timesteps", {"timesteps": [999, 500], "sigmas": [1.0, 0.5]}),
    ("sigmas", {"sigmas": [1.0, 0.5]}),
    ("guidance_scale", {"guidance_scale": "strong"}),
    ("clip_skip", {"clip_skip": 9}),
    ("ip_adapter_image", {"ip_adapter_image": picture(), "ip_adapter_image_embeds": [EMBEDS]}),
    ("ip_adapter_image_embeds", {"ip_adapter_image_embeds": EMBEDS}),
    ("ip_adapter_image", {"ip_adapter_image": picture()}),
    ("cross_attention_kwargs", {"cross_attention_kwargs": "scale"}),
]

# Nonsense that diffusers computes: refused here.
REFUSED_BY_US: list[tuple[str, dict[str, Any]]] = [
    ("guidance_scale", {"guidance_scale": float("nan")}),
    ("guidance_scale", {"guidance_scale": float("inf")}),
    ("strength", {"strength": float("nan")}),
    ("output_type", {"output_type": "jpeg"}),
    ("eta", {"eta": -1.0}),
    ("clip_skip", {"clip_skip": -2}),
    ("image", {"image": (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)}),
    ("mask_image", {"padding_mask_crop": 4, "mask_image": hole(box=(0, 0, 0, 0))}),
    ("cross_attention_kwargs", {"cross_attention_kwargs": {"gligen": {}}}),
    ("callback_on_step_end", {"callback_on_step_end": lambda pipe, i, t, tensors: [1]}),
]


def label(case: Any) -> str | None:
    return ",".join(f"{k}" for k in case) if isinstance(case, dict) else case


@pytest.mark.parametrize(("field", "arguments"), REFUSED_BY_BOTH, ids=label)
def test_refused_by_both(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017 (diffusers raises whatever comes first)
        run(tiny_checkpoints.oracle("inpaint"), dict(arguments))
    with pytest.raises(InvalidParameter) as caught:
        run(tiny_checkpoints.ours("inpaint"), dict(arguments))
    assert caught.value.field == field
    assert f"`{field}`" in str(caught.value)


@pytest.mark.parametrize(("field", "arguments"), REFUSED_BY_US, ids=label)
def test_refused_by_us(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        run(tiny_checkpoints.ours("inpaint"), dict(arguments))
    assert caught.value.field == field


def test_unknown_argument() -> None:
    with pytest.raises(TypeError, match="guidence_scale"):
        run(tiny_checkpoints.ours("inpaint"), {"guidence_scale": 2.0})


def test_generator_of_another_device() -> None:
    class Elsewhere:
        device = torch.device("cuda")

    from worker.engine.noise import randn_tensor

    with pytest.raises(InvalidParameter, match="generator"):
        randn_tensor((1, 4, 8, 8), Elsewhere(), "cpu")
    assert generator().device.type == "cpu"
