"""The UNet against diffusers' on random weights, and what the engine asks of it beyond that."""

import diffusers
import pytest
import torch

from tests.engine.comparison import relative_error
from tests.engine.tiny_checkpoints import UNET
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.unet import UNet2DConditionModel

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CONFIGURATIONS = {
    "plain": {},
    "inpaint": {"in_channels": 9},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 8), "upcast_attention": True},
    "heads-that-do-not-divide": {"attention_head_dim": 5},
    "two-layers": {"layers_per_block": 2},
    "layers-per-level": {"layers_per_block": (1, 3)},
    "deep-transformers": {"transformer_layers_per_block": 2},
    "transformers-per-level": {
        "transformer_layers_per_block": (1, 2),
        "down_block_types": (CROSS, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "only-cross-attention": {"only_cross_attention": True},
    "only-cross-attention-somewhere": {"only_cross_attention": (True, False)},
    "other-order-of-blocks": {
        "down_block_types": (PLAIN, CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "three-levels": {
        "block_out_channels": (16, 32, 64),
        "down_block_types": (CROSS, CROSS, PLAIN),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "guidance-embedding": {"time_cond_proj_dim": 16},
    "no-middle": {"mid_block_type": None},
    "plain-middle": {"mid_block_type": "UNetMidBlock2D"},
    "scaled-middle": {"mid_block_scale_factor": 1.4},
    "centered": {"center_input_sample": True},
    "time": {"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 48},
    "odd-time": {"block_out_channels": (33, 66), "norm_num_groups": 3, "attention_head_dim": 3},
    "norms": {"norm_num_groups": 4, "norm_eps": 1e-3},
    "padding": {"downsample_padding": 0},
    "kernels": {"conv_in_kernel": 1, "conv_out_kernel": 5},
    "channels": {"out_channels": 8},
    "dropout-is-for-training": {"dropout": 0.3},
}


def pair(**changes) -> tuple[diffusers.UNet2DConditionModel, UNet2DConditionModel]:
    """diffusers' UNet with random weights, norms included, and ours with the same."""
    torch.manual_seed(1)
    theirs = diffusers.UNet2DConditionModel(**{**UNET, **changes}).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) / 5)
    return theirs, UNet2DConditionModel.from_weights(theirs.config, theirs.state_dict(), None)


def inputs(theirs, batch: int = 2, height: int = 8, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    condition = theirs.config.time_cond_proj_dim
    return {
        "sample": torch.randn(batch, theirs.config.in_channels, height, width, generator=generator),
        "timestep": torch.randint(0, 1000, (batch,), generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 32, generator=generator),
        "timestep_cond": condition and torch.randn(batch, condition, generator=generator),
    }


@torch.no_grad()
@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_equals_diffusers(changes):
    theirs, ours = pair(**changes)
    given = inputs(theirs)
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 16), (9, 8), (7, 13), (1, 1)])
def test_any_size_equals_diffusers(size):
    theirs, ours = pair(in_channels=9)
    given = inputs(theirs, 1, *size)
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "timestep", [0, 999, 431.5, torch.tensor(17), torch.tensor([3, 900]), torch.tensor([0.5, 7.25])]
)
def test_any_form_of_time_equals_diffusers(timestep):
    theirs, ours = pair()
    given = {**inputs(theirs), "timestep": timestep}
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_diffusers(dtype):
    theirs, ours = pair(in_channels=9)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    given = inputs(theirs)
    given = {key: value.to(dtype) if key != "timestep" and value is not None else value for key, value in given.items()}
    out = ours(**given)
    assert out.dtype == dtype
    assert relative_error(out, theirs(**given).sample) <= 1e-3


@torch.no_grad()
def test_channels_last_changes_nothing_but_the_layout():
    theirs, ours = pair(in_channels=9)
    given = inputs(theirs)
    expected = theirs(**given).sample
    ours = ours.to(memory_format=torch.channels_last)
    given["sample"] = given["sample"].contiguous(memory_format=torch.channels_last)
    out = ours(**given)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, expected) <= 1e-5


@torch.no_grad()
def test_every_row_equals_its_solo_run():
    theirs, ours = pair(in_channels=9)
    given = inputs(theirs, batch=5)
    crowd = ours(**given)
    for row in range(5):
        alone = ours(**{key: value[row : row + 1] for key, value in given.items() if value is not None})
        assert relative_error(crowd[row : row + 1], alone) <= 1e-5


def test_gradients_equal_diffusers():
    theirs, ours = pair()
    given = inputs(theirs)
    theirs(**given).sample.square().mean().backward()
    ours(**given).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-6), name


def test_state_dict_has_diffusers_names_and_shapes_at_full_size():
    """Stable Diffusion 1.5 and 2.1 as they are published, without memory."""
    sd15 = {"in_channels": 9, "cross_attention_dim": 768}
    sd21 = {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    }
    for config in (sd15, sd21):
        with torch.device("meta"):
            theirs, ours = diffusers.UNet2DConditionModel(**config), UNet2DConditionModel(**config)
        shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (theirs, ours)]
        assert shapes[0] == shapes[1]


def test_a_guidance_embedding_needs_its_layer():
    _, ours = pair()
    with pytest.raises(InvalidParameter, match="time_cond_proj_dim"):
        ours(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 7, 32), timestep_cond=torch.zeros(1, 16))


def test_from_config_takes_a_diffusers_config():
    theirs, ours = pair(in_channels=9)
    fresh = UNet2DConditionModel.from_config(theirs.config)
    assert fresh.config == ours.config
    assert fresh.training
    with pytest.raises(CheckpointInvalid, match="`in_channels`"):
        UNet2DConditionModel(in_channels=-1)
