"""The autoencoder against diffusers' on random weights."""

import diffusers
import pytest
import torch

from tests.engine.comparison import relative_error
from tests.engine.tiny_checkpoints import VAE
from worker.engine.vae import AutoencoderKL, DiagonalGaussian

CONFIGURATIONS = {
    "sd": {},
    "two-layers": {"layers_per_block": 2},
    "two-levels": {
        "block_out_channels": (8, 24),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "no-quantization-convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no-attention": {"mid_block_add_attention": False},
    "channels": {"latent_channels": 8, "in_channels": 4, "out_channels": 5},
}


def pair(**changes) -> tuple[diffusers.AutoencoderKL, AutoencoderKL]:
    torch.manual_seed(1)
    theirs = diffusers.AutoencoderKL(**{**VAE, **changes}).eval()
    return theirs, AutoencoderKL.from_weights(theirs.config, theirs.state_dict(), None)


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("size", [(64, 32), (40, 56)])
def test_equals_diffusers(changes, size):
    theirs, ours = pair(**changes)
    picture = torch.rand(2, theirs.config.in_channels, *size) * 2 - 1
    expected, given = theirs.encode(picture).latent_dist, ours.encode(picture)
    assert relative_error(given.mean, expected.mean) <= 1e-5
    assert relative_error(given.std, expected.std) <= 1e-5
    assert relative_error(ours.decode(expected.mean), theirs.decode(expected.mean).sample) <= 1e-5
    assert relative_error(ours(picture), theirs(picture).sample) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_diffusers(dtype):
    theirs, ours = pair()
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    picture = (torch.rand(1, 3, 32, 32) * 2 - 1).to(dtype)
    latents = theirs.encode(picture).latent_dist.mean
    assert relative_error(ours.encode(picture).mean, latents) <= 1e-3
    assert relative_error(ours.decode(latents), theirs.decode(latents).sample) <= 1e-3


@pytest.mark.parametrize("generators", ["one", "list"])
def test_samples_equal_diffusers(generators):
    moments = torch.randn(3, 8, 4, 4) * 20  # far enough for the clamp of the variance to matter
    expected = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(moments)

    def seeded():
        one = [torch.Generator().manual_seed(k) for k in range(3)]
        return one if generators == "list" else one[0]

    ours = DiagonalGaussian(moments)
    assert torch.equal(ours.sample(seeded()), expected.sample(seeded()))
    assert torch.equal(ours.mode(), expected.mode())
    assert ours.std.max() == torch.tensor(10.0).exp()


@torch.no_grad()
def test_every_row_equals_its_solo_run():
    _, ours = pair()
    picture = torch.rand(3, 3, 32, 32)
    means = ours.encode(picture).mean
    decoded = ours.decode(means)
    for row in range(3):
        assert relative_error(ours.encode(picture[row : row + 1]).mean, means[row : row + 1]) <= 1e-5
        assert relative_error(ours.decode(means[row : row + 1]), decoded[row : row + 1]) <= 1e-5


def test_state_dict_has_diffusers_names_and_shapes_at_full_size():
    config = {
        **{key: VAE[key] for key in ("down_block_types", "up_block_types")},
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        theirs, ours = diffusers.AutoencoderKL(**config), AutoencoderKL(**config)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (72, 136), (200, 64)])
@pytest.mark.parametrize("slicing", [False, True])
def test_tiles_equal_diffusers(size, slicing):
    theirs, ours = pair()
    for model in (theirs, ours):
        model.enable_tiling()
        if slicing:
            model.enable_slicing()
    picture = torch.rand(2, 3, *size) * 2 - 1
    latents = theirs.encode(picture).latent_dist.mean
    assert relative_error(ours.encode(picture).mean, latents) <= 1e-5
    assert relative_error(ours.decode(latents), theirs.decode(latents).sample) <= 1e-5


@torch.no_grad()
def test_tiles_too_small_to_overlap_and_tiles_of_two_sides():
    theirs, ours = pair(sample_size=16)  # a latent tile of two: nothing is blended on the way in
    for model in (theirs, ours):
        model.enable_tiling()
    picture = torch.rand(1, 3, 24, 36)
    assert relative_error(ours.encode(picture).mean, theirs.encode(picture).latent_dist.mean) <= 1e-5
    assert pair(sample_size=64)[1].decode_tiling == AutoencoderKL(**{**VAE, "sample_size": (64, 32)}).decode_tiling


@torch.no_grad()
def test_tiling_and_slicing_end():
    _, ours = pair()
    picture = torch.rand(2, 3, 96, 64)
    whole = ours(picture)
    ours.enable_tiling()
    ours.enable_slicing()
    assert relative_error(ours(picture), whole) > 1e-4
    ours.disable_tiling()
    assert relative_error(ours(picture), whole) <= 1e-5
    ours.disable_slicing()
    assert torch.equal(ours(picture), whole)


@torch.no_grad()
def test_slices_and_tiles_bound_what_the_network_sees():
    _, ours = pair()
    seen = []
    ours.encoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    ours.enable_slicing()
    ours.enable_tiling()
    ours.encode(torch.rand(3, 3, 96, 128))
    assert {shape[0] for shape in seen} == {1}
    assert max(max(shape[2:]) for shape in seen) == 64
