"""The first road: a text, a picture and a mask through DDIM equal diffusers, with every UNet and with and without
guidance, full and partial strength, LoRA and none."""

from collections.abc import Iterator

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity, relative_error, run

GRID = pytest.mark.parametrize(
    ("guidance_scale", "strength"), [(7.5, 1.0), (7.5, 0.6), (1.0, 1.0), (1.0, 0.6)], ids=lambda v: str(v)
)
KINDS = pytest.mark.parametrize("kind", ["inpaint", "plain"])


@KINDS
@GRID
def test_latents_equal(kind: str, guidance_scale: float, strength: float) -> None:
    assert_parity(kind, guidance_scale=guidance_scale, strength=strength, num_inference_steps=5)


@KINDS
def test_pictures_equal(kind: str) -> None:
    assert_parity(kind, strength=0.8, negative_prompt="blurry", output_type="pil")


@pytest.fixture(params=["inpaint", "plain"])
def with_lora(request: pytest.FixtureRequest) -> Iterator[str]:
    kind = request.param
    pipes = tiny_checkpoints.oracle(kind), tiny_checkpoints.ours(kind)
    before = {name: weight.clone() for name, weight in pipes[1].unet.state_dict().items()}
    for pipe in pipes:
        pipe.load_lora_weights(tiny_checkpoints.lora(kind))
    yield kind
    for pipe in pipes:
        pipe.unload_lora_weights()
        vars(pipe).pop("_lora_scale", None)  # diffusers keeps the last call's for LoRAs it loads later
    after = pipes[1].unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the weights are restored to the bit"


@GRID
def test_lora_latents_equal(with_lora: str, guidance_scale: float, strength: float) -> None:
    assert_parity(with_lora, guidance_scale=guidance_scale, strength=strength)


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_lora_scale(with_lora: str, scale: float) -> None:
    assert_parity(with_lora, cross_attention_kwargs={"scale": scale})


def test_lora_is_seen(with_lora: str) -> None:
    arguments = {"output_type": "latent"}
    ours = tiny_checkpoints.ours(with_lora)
    full, half = run(ours, dict(arguments)), run(ours, {**arguments, "cross_attention_kwargs": {"scale": 0.5}})
    assert relative_error(half, full) > 1e-2
    assert torch.equal(run(ours, dict(arguments)), full), "the scale lasts for its call alone"
