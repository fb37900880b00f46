"""The mask-conditioned autoencoder against diffusers' on random weights."""

import diffusers
import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import relative_error
from worker.engine import checkpoints
from worker.engine.errors import CheckpointInvalid, FeatureUnavailable, InvalidParameter
from worker.engine.vae_asymmetric import AsymmetricAutoencoderKL


def pair(**changes) -> tuple[diffusers.AsymmetricAutoencoderKL, AsymmetricAutoencoderKL]:
    torch.manual_seed(1)
    small = tiny_checkpoints.vae("asymmetric").config
    config = {
        key: value for key, value in small.items() if not key.startswith("_") and key in AsymmetricAutoencoderKL.FIELDS
    }
    derived = ("block_out_channels", "force_upcast")
    theirs = diffusers.AsymmetricAutoencoderKL(
        **{key: value for key, value in {**config, **changes}.items() if key not in derived}
    ).eval()
    return theirs, AsymmetricAutoencoderKL.from_weights(theirs.config, theirs.state_dict(), None)


def picture_and_mask(size: tuple[int, int] = (64, 32)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(2, 1, *size, generator=generator) > 0.5).float()
    return torch.rand(2, 3, *size, generator=generator) * 2 - 1, mask


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"up_block_out_channels": (24, 48, 96, 96), "layers_per_up_block": 2},
        {"down_block_out_channels": (8, 16, 16, 32), "layers_per_down_block": 2, "latent_channels": 5},
    ],
    ids=["tiny", "larger-decoder", "other-encoder"],
)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_diffusers(changes, masked):
    theirs, ours = pair(**changes)
    picture, mask = picture_and_mask()
    expected = theirs.encode(picture).latent_dist
    assert relative_error(ours.encode(picture).mean, expected.mean) <= 1e-5
    assert relative_error(ours.encode(picture).std, expected.std) <= 1e-5
    condition = {"image": picture, "mask": mask} if masked else {}
    decoded = ours.decode(expected.mean, **condition)
    assert relative_error(decoded, theirs.decode(expected.mean, **condition).sample) <= 1e-5
    assert (
        relative_error(ours(picture, mask if masked else None), theirs(picture, mask if masked else None).sample)
        <= 1e-5
    )


@torch.no_grad()
def test_the_untouched_part_shapes_the_result():
    _, ours = pair()
    picture, mask = picture_and_mask()
    latents = ours.encode(picture).mean
    assert relative_error(ours.decode(latents, picture, mask), ours.decode(latents, -picture, mask)) > 1e-3
    everything = torch.ones_like(mask)
    assert relative_error(ours.decode(latents, picture, everything), ours.decode(latents)) <= 1e-6


def test_image_and_mask_belong_together():
    _, ours = pair()
    picture, mask = picture_and_mask()
    for condition in ({"image": picture}, {"mask": mask}):
        with pytest.raises(InvalidParameter, match="belong together"):
            ours.decode(torch.zeros(2, 4, 8, 4), **condition)


def test_a_decoder_that_does_not_fit_its_mask_encoder():
    _, ours = pair(up_block_out_channels=(16, 24, 64, 64))
    with pytest.raises(CheckpointInvalid, match="`up_block_out_channels`"):
        ours.decode(torch.zeros(2, 4, 8, 4), *picture_and_mask())


def test_it_has_no_slices_and_no_tiles():
    _, ours = pair()
    for method in (ours.enable_slicing, ours.enable_tiling):
        with pytest.raises(FeatureUnavailable, match="whole pictures"):
            method()
    ours.disable_slicing()
    ours.disable_tiling()


def test_it_loads_from_a_checkpoint_and_is_read_back_by_diffusers(tiny_checkpoint, tmp_path):
    ours = checkpoints.load_component(tiny_checkpoint(kind="asymmetric"), "vae")
    assert isinstance(ours, AsymmetricAutoencoderKL)
    assert ours.config.block_out_channels == ours.config.up_block_out_channels
    checkpoints.save_model(ours, tmp_path)
    theirs = diffusers.AsymmetricAutoencoderKL.from_pretrained(tmp_path)
    assert all(torch.equal(t, ours.state_dict()[name]) for name, t in theirs.state_dict().items())


def test_state_dict_has_diffusers_names_and_shapes_at_full_size():
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "down_block_out_channels": (128, 256, 512, 512),
        "up_block_out_channels": (192, 384, 768, 768),
        "layers_per_down_block": 2,
        "layers_per_up_block": 3,
    }
    with torch.device("meta"):
        theirs, ours = diffusers.AsymmetricAutoencoderKL(**config), AsymmetricAutoencoderKL(**config)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
