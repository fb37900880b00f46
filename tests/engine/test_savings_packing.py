"""Packed convolutions: the same numbers, whoever writes, moves or copies the weights in between."""

import copy

import pytest
import torch
from torch import nn

from tests.engine import lora_samples as samples
from tests.engine.comparison import relative_error
from tests.engine.test_lora_mixed import Bench, worst_row
from tests.engine.test_unet import inputs, pair
from tests.engine.tiny_checkpoints import VAE
from worker.engine.lora import Adapter
from worker.engine.packing import PackedConvolutions
from worker.engine.vae import AutoencoderKL

TOLERANCE = 1e-5  # where the plain call takes another kernel than the packed one


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d) for layer in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"downsample_padding": 0}, {"conv_in_kernel": 1, "conv_out_kernel": 5}, {"use_linear_projection": True}],
    ids=["plain", "padding", "kernels", "sd2"],
)
def test_equals_the_plain_unet_at_any_size(changes, channels_last):
    _, ours = pair(**changes)
    if channels_last:
        ours.to(memory_format=torch.channels_last)
    sizes = [(2, 8, 8), (1, 8, 8), (5, 8, 8), (2, 16, 12), (2, 9, 7), (2, 2, 2), (2, 8, 8)]
    given = [inputs(ours, *size) for size in sizes]
    expected = [ours(**one) for one in given]
    packing = PackedConvolutions(ours)
    assert packing.nbytes == 0
    assert all(relative_error(ours(**one), out) <= TOLERANCE for one, out in zip(given, expected, strict=True))
    assert packing.nbytes >= sum(m.weight.nbytes for m in ours.modules() if isinstance(m, nn.Conv2d))
    packing.remove()
    assert all(torch.equal(ours(**one), out) for one, out in zip(given, expected, strict=True))
    assert packing.nbytes == 0


def test_shapes_that_want_one_layout_share_it():
    layer = nn.Conv2d(64, 64, 1)
    packing = PackedConvolutions(layer)
    with torch.no_grad():
        layer(torch.randn(1, 64, 8, 8))
        one = packing.nbytes
        for rows in range(2, 9):
            layer(torch.randn(rows, 64, 8, 8))
    assert one > 0
    assert packing.nbytes == one


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_merged_lora_is_seen_and_only_its_layers_are_packed_anew(mode):
    bench = Bench()
    lora = bench.lora(1, names=(samples.LINEAR, samples.CONV, samples.POINT))
    given = bench.batch(2)
    with mode():
        base = bench.unet(*given)
        bench.merger.set_adapters([(lora,)])
        merged = bench.unet(*given)
        bench.merger.restore()
        packing = PackedConvolutions(bench.unet)
        assert relative_error(bench.unet(*given), base) <= TOLERANCE
        size = packing.nbytes
        assert packing.refresh() == 0
        bench.merger.set_adapters([(lora,)])
        assert relative_error(bench.unet(*given), merged) <= TOLERANCE  # noticed without being told
        bench.merger.restore()
        assert packing.refresh() == 2
        assert packing.refresh() == 0
        assert packing.nbytes == size
        assert relative_error(bench.unet(*given), base) <= TOLERANCE
    assert relative_error(merged, base) > 1e-3


@torch.no_grad()
def test_a_layer_is_packed_once_and_again_only_when_it_changed(monkeypatch):
    _, ours = pair()
    given = inputs(ours)
    made = []
    reorder = torch.ops.mkldnn._reorder_convolution_weight

    def counted(weight, *rest):
        made.append(weight)
        return reorder(weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", counted)
    PackedConvolutions(ours)
    for _ in range(3):
        ours(**given)
    assert len(made) == convolutions(ours)
    made.clear()
    ours.conv_in.weight.mul_(2)
    ours(**given)
    assert [weight is ours.conv_in.weight for weight in made] == [True]


@torch.no_grad()
def test_mixed_loras_need_no_packing():
    bench = Bench(channels_last=True)
    sets = [(Adapter(bench.lora(1)),), (), (Adapter(bench.lora(2)),)]
    expected = bench.merged(sets)
    packing = PackedConvolutions(bench.unet)
    bench.unet(*bench.batch(3))
    assert worst_row(bench.side_by_side(sets), expected) <= 1e-5
    assert packing.refresh() == 0


@torch.no_grad()
def test_weights_can_be_read_copied_cast_and_replaced():
    _, ours = pair()
    given = inputs(ours)
    expected = ours(**given)
    names = list(ours.state_dict())
    PackedConvolutions(ours)
    ours(**given)
    assert list(ours.state_dict()) == names
    twin = copy.deepcopy(ours)
    assert relative_error(twin(**given), expected) <= TOLERANCE
    twin.conv_in.weight.zero_()
    assert relative_error(ours(**given), expected) <= TOLERANCE  # the copy has packed weights of its own
    assert relative_error(twin(**given), expected) > 1e-2
    wide = {k: v.double() if v is not None and k != "timestep" else v for k, v in given.items()}
    assert relative_error(ours.to(torch.float64)(**wide), expected) <= 1e-5
    assert relative_error(ours.to(torch.float32)(**given), expected) <= TOLERANCE
    other, _ = pair(center_input_sample=True)
    other.conv_in.weight.mul_(3)
    ours.load_state_dict(other.state_dict(), assign=True)
    fresh = pair()[1]
    fresh.load_state_dict(other.state_dict())
    assert relative_error(ours(**given), fresh(**given)) <= TOLERANCE


def test_training_goes_by_the_layers_own_parameters():
    _, ours = pair()
    given = inputs(ours)
    packing = PackedConvolutions(ours)
    ours(**given).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert packing.nbytes == 0


@torch.no_grad()
def test_the_autoencoder_can_be_packed_too():
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval()
    picture = torch.rand(1, 3, 32, 32)
    expected = vae(picture)
    PackedConvolutions(vae)
    assert relative_error(vae(picture), expected) <= TOLERANCE
