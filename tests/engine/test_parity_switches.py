"""The networks' switches: FreeU equals diffusers'; what only changes how the numbers are computed changes none."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity, assert_same_latents, relative_error, run
from tests.engine.pictures import hole, picture
from worker.engine.errors import FeatureUnavailable

LATENT = {"output_type": "latent", "num_inference_steps": 2}


@pytest.fixture
def pipes() -> Iterator[tuple[Any, Any]]:
    ours, theirs = tiny_checkpoints.ours("sd2"), tiny_checkpoints.oracle("sd2")
    before = run(ours, dict(LATENT))
    yield ours, theirs
    assert torch.equal(run(ours, dict(LATENT)), before), "everything is switched off again"


def test_freeu(pipes: tuple[Any, Any]) -> None:
    plain = run(pipes[0], dict(LATENT))
    for pipe in pipes:
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert_parity("sd2")
    assert relative_error(run(pipes[0], dict(LATENT)), plain) > 1e-3
    for pipe in pipes:
        pipe.disable_freeu()


@pytest.mark.parametrize("parts", [{}, {"vae": False}, {"unet": False}])
def test_fused_projections(pipes: tuple[Any, Any], parts: dict[str, bool]) -> None:
    for pipe in pipes:
        pipe.fuse_qkv_projections(**parts)
    assert_parity("sd2", output_type="pil", num_inference_steps=2)
    for pipe in pipes:
        pipe.unfuse_qkv_projections(**parts)


def test_fused_projections_carry_loras(pipes: tuple[Any, Any]) -> None:
    ours, _ = pipes
    ours.load_lora_weights(tiny_checkpoints.lora("sd2"))
    expected = run(ours, dict(LATENT))
    ours.fuse_qkv_projections()
    assert_same_latents(run(ours, dict(LATENT)), expected, 1e-5)
    ours.set_adapters("default_0", 0.5)
    half = run(ours, dict(LATENT))
    ours.unfuse_qkv_projections()
    assert_same_latents(run(ours, dict(LATENT)), half, 1e-5)
    ours.unload_lora_weights()


@pytest.mark.parametrize("slice_size", ["auto", "max", 1, 2])
def test_attention_slicing(pipes: tuple[Any, Any], slice_size: str | int) -> None:
    for pipe in pipes:
        pipe.enable_attention_slicing(slice_size)
    assert_parity("sd2", num_inference_steps=2)
    for pipe in pipes:
        pipe.disable_attention_slicing()
        with pytest.raises(ValueError, match=r"slice_size|smaller"):
            pipe.enable_attention_slicing(99)


def test_xformers_is_missed_clearly(pipes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(FeatureUnavailable, match=r"[xX][fF]ormers"):
        pipes[0].enable_xformers_memory_efficient_attention()
    pipes[0].disable_xformers_memory_efficient_attention()


SWITCHES: dict[str, tuple[Callable[[Any], None], Callable[[Any], None]]] = {
    "slicing": (lambda pipe: pipe.vae.enable_slicing(), lambda pipe: pipe.vae.disable_slicing()),
    "tiling": (lambda pipe: pipe.vae.enable_tiling(), lambda pipe: pipe.vae.disable_tiling()),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_vae_switches(pipes: tuple[Any, Any], name: str) -> None:
    ours, theirs = pipes
    getattr(ours, f"enable_vae_{name}")()
    SWITCHES[name][0](theirs)
    large = {"image": picture(112, 96), "mask_image": hole(112, 96), "height": 96, "width": 112}
    assert_parity("sd2", output_type="pil", num_inference_steps=2, num_images_per_prompt=2, **large)
    getattr(ours, f"disable_vae_{name}")()
    SWITCHES[name][1](theirs)


def test_a_vae_without_the_switch_says_so() -> None:
    pipe = tiny_checkpoints.ours("asymmetric")
    for call in (pipe.enable_vae_tiling, pipe.enable_vae_slicing):
        with pytest.raises(FeatureUnavailable, match="AsymmetricAutoencoderKL"):
            call()
