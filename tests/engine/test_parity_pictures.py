"""What comes out: kinds of output, crops around the mask, decoders that look at the picture, the result object."""

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity, assert_same_pictures, generator, run
from tests.engine.pictures import hole, picture
from worker.engine import StableDiffusionInpaintPipeline, StableDiffusionPipelineOutput


@pytest.mark.parametrize("kind", ["inpaint", "plain"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types(kind: str, output_type: str) -> None:
    assert_parity(kind, output_type=output_type, num_images_per_prompt=2, num_inference_steps=2)


CROPS: dict[str, dict[str, Any]] = {
    "small hole": {"mask_image": hole(box=(0.5, 0.5, 0.6, 0.6)), "padding_mask_crop": 4},
    "no padding": {"mask_image": hole(box=(0.5, 0.5, 0.7, 0.9)), "padding_mask_crop": 0},
    "wide picture": {
        "image": picture(150, 60),
        "mask_image": hole(150, 60, (0.7, 0.1, 0.9, 0.9)),
        "padding_mask_crop": 8,
    },
    "tall picture": {
        "image": picture(60, 150),
        "mask_image": hole(60, 150, (0.1, 0.0, 0.9, 0.1)),
        "padding_mask_crop": 8,
    },
    "corner": {"image": picture(90, 90), "mask_image": hole(90, 90, (0.9, 0.9, 1.0, 1.0)), "padding_mask_crop": 16},
    "whole": {"image": picture(90, 70), "mask_image": hole(90, 70, (0, 0, 1, 1)), "padding_mask_crop": 16},
    "smaller than the model": {"image": picture(30, 20), "mask_image": hole(30, 20), "padding_mask_crop": 2},
    "other size": {
        "image": picture(90, 70),
        "mask_image": hole(90, 70),
        "padding_mask_crop": 2,
        "height": 40,
        "width": 72,
    },
    "soft mask": {"mask_image": picture().convert("L"), "padding_mask_crop": 4},
    "alpha": {"image": picture().convert("RGBA"), "padding_mask_crop": 4},
    "grey": {"image": picture().convert("L"), "padding_mask_crop": 4},
    "palette": {"image": picture().convert("P"), "mask_image": hole().convert("1"), "padding_mask_crop": 4},
    "two": {"num_images_per_prompt": 2, "padding_mask_crop": 4},
}


@pytest.mark.parametrize("arguments", CROPS.values(), ids=CROPS.keys())
def test_crops(arguments: dict[str, Any]) -> None:
    assert_parity("inpaint", **{"output_type": "pil", "num_inference_steps": 2, **arguments})


def test_crop_keeps_the_rest_to_the_bit() -> None:
    image, mask = picture(90, 70), hole(90, 70, (0.5, 0.5, 0.7, 0.7))
    made = run(tiny_checkpoints.ours("inpaint"), {"image": image, "mask_image": mask, "padding_mask_crop": 4})[0]
    outside = np.asarray(mask) == 0
    assert made.size == image.size
    assert np.array_equal(np.asarray(made)[outside], np.asarray(image)[outside])
    assert not np.array_equal(np.asarray(made)[~outside], np.asarray(image)[~outside])


ASYMMETRIC: dict[str, dict[str, Any]] = {
    "one": {},
    "partial strength": {"strength": 0.6},
    "two": {
        "prompt": ["a", "b"],
        "image": [picture(), picture(seed=1)],
        "mask_image": [hole(), hole(box=(0, 0, 0.4, 1))],
    },
    "crop": {"image": picture(90, 70), "mask_image": hole(90, 70), "padding_mask_crop": 4},
}


@pytest.mark.parametrize("arguments", ASYMMETRIC.values(), ids=ASYMMETRIC.keys())
def test_decoder_that_looks_at_the_picture(arguments: dict[str, Any]) -> None:
    assert_parity("asymmetric", **{"output_type": "pil", "num_inference_steps": 2, **arguments})


def test_decoder_that_looks_at_one_picture_for_two() -> None:
    """diffusers needs the picture twice for that."""
    latents = torch.randn(2, 4, 8, 8, generator=generator())
    arguments = {"latents": latents, "masked_image_latents": latents[:1], "output_type": "pil"}
    ours = run(tiny_checkpoints.ours("asymmetric"), {**arguments, "num_images_per_prompt": 2})
    twice = {"prompt": ["a red cat"] * 2, "image": [picture()] * 2, "mask_image": [hole()] * 2}
    assert_same_pictures(ours, run(tiny_checkpoints.oracle("asymmetric"), {**arguments, **twice}))


@pytest.mark.parametrize("kind", ["inpaint", "plain", "asymmetric"])
@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_the_generator_is_left_where_diffusers_leaves_it(kind: str, output_type: str) -> None:
    """A second call with the same generator goes on with the same numbers."""
    left = []
    for pipe in (tiny_checkpoints.ours(kind), tiny_checkpoints.oracle(kind)):
        source = generator()
        for _ in range(2):
            run(pipe, {"seed": None, "generator": source, "num_inference_steps": 1, "output_type": output_type})
        left.append(source.get_state())
    assert torch.equal(*left)


def test_result() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    arguments = {"prompt": "a", "image": picture(), "mask_image": hole(), "num_inference_steps": 1}
    result = pipe(**arguments, generator=generator())
    assert isinstance(result, StableDiffusionPipelineOutput)
    assert isinstance(result.images[0], Image.Image)
    assert result.nsfw_content_detected is None
    assert result[0] is result.images is result["images"]
    images, flags = pipe(**arguments, generator=generator(), return_dict=False)
    assert flags is None
    assert np.array_equal(np.asarray(images[0]), np.asarray(result.images[0]))


def test_signature_is_diffusers() -> None:
    """Names, order and defaults of the call and the constructor, positional arguments included."""
    for method in ("__call__", "__init__", "encode_prompt", "get_guidance_scale_embedding", "fuse_lora", "unfuse_lora"):
        ours, theirs = (
            inspect.signature(getattr(cls, method)).parameters
            for cls in (StableDiffusionInpaintPipeline, diffusers.StableDiffusionInpaintPipeline)
        )
        positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional, method
        for name in positional:
            default, expected = ours[name].default, theirs[name].default
            default = list(default) if isinstance(default, tuple) else default
            if name != "components":  # theirs is an empty list that means the two of ours
                assert default == expected or (default, expected) == (inspect.Parameter.empty, None), (method, name)
    assert {"callback", "callback_steps"} <= inspect.signature(
        StableDiffusionInpaintPipeline.__call__
    ).parameters.keys()


@pytest.mark.parametrize("length", [16, 17, 512])
def test_guidance_scale_embedding(length: int) -> None:
    scales = torch.tensor([0.0, 6.5, 14.0])
    ours = tiny_checkpoints.ours("inpaint").get_guidance_scale_embedding(scales, embedding_dim=length)
    theirs = tiny_checkpoints.oracle("inpaint").get_guidance_scale_embedding(scales, embedding_dim=length)
    assert torch.equal(ours, theirs)
