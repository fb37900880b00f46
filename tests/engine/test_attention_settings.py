"""Slices, packed projections and xFormers change how attention is computed, never what comes out."""

import sys
import types

import diffusers
import pytest
import torch
import torch.nn.functional as F

from tests.engine.comparison import relative_error
from tests.engine.test_unet import inputs, pair
from tests.engine.tiny_checkpoints import VAE
from worker.engine.attention import Attention
from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.vae import AutoencoderKL


@pytest.fixture
def models():
    theirs, ours = pair(in_channels=9, attention_head_dim=(2, 4))
    return theirs, ours, inputs(theirs)


def in_use(layer: Attention) -> bool:
    return layer.packed is not None and layer.packed.stands_for(layer._together())


@torch.no_grad()
@pytest.mark.parametrize("size", ["auto", "max", 1, 2, "list"])
def test_sliced_attention_equals_diffusers(models, size):
    theirs, ours, given = models
    if size == "list":
        size = [1, 2, 1, 2, 1, 2, 4, 3]  # two levels of two heads each way and the middle of four
    whole = ours(**given)
    theirs.set_attention_slice(size)
    ours.set_attention_slice(size)
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5
    ours.set_attention_slice(None)
    assert torch.equal(ours(**given), whole)


def test_slices_are_no_larger_than_asked(models, monkeypatch):
    _, ours, given = models
    seen = []

    def spy(query, key, value):
        seen.append(query.shape[0])
        return F.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1) @ value

    ours.set_attention_slice("max")
    monkeypatch.setattr("worker.engine.attention_products.F.scaled_dot_product_attention", spy)
    with torch.no_grad():
        ours(**given)
    assert set(seen) == {1}


@pytest.mark.parametrize("size", [3, 0, -1, 2.0, "most", [1], [None, "x"] * 4])
def test_impossible_slices_are_refused(models, size):
    _, ours, _ = models
    with pytest.raises(InvalidParameter, match="slice_size"):
        ours.set_attention_slice(size)


@torch.no_grad()
def test_fused_projections_equal_diffusers_and_come_apart_again(models):
    theirs, ours, given = models
    before, whole = {name: t.clone() for name, t in ours.state_dict().items()}, ours(**given)
    theirs.fuse_qkv_projections()
    ours.fuse_qkv_projections()
    assert all(in_use(layer) for layer in ours.attention_layers().values())
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5
    assert ours.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())
    ours.unfuse_qkv_projections()
    assert torch.equal(ours(**given), whole)


@torch.no_grad()
def test_a_weight_written_in_place_is_seen_through_the_fused_projection(models):
    _, ours, given = models
    plain = ours(**given)
    ours.fuse_qkv_projections()
    for layer in ours.attention_layers().values():
        layer.to_v.weight.add_(torch.randn_like(layer.to_v.weight))
        assert in_use(layer)
    changed = ours(**given)
    ours.unfuse_qkv_projections()
    assert relative_error(changed, ours(**given)) <= 1e-5
    assert relative_error(changed, plain) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("change", ["replace", "hook", "module"])
def test_a_layer_that_was_changed_behind_the_fused_projection_is_called_itself(change):
    layer = Attention(16, heads=2, head_width=8)
    x = torch.randn(1, 5, 16)
    layer.pack()
    before = layer(x)
    if change == "replace":
        layer.to_q.weight = torch.nn.Parameter(torch.randn(16, 16))
    elif change == "hook":
        layer.to_q.register_forward_hook(lambda module, args, out: 2 * out)
    else:
        layer.to_q = torch.nn.Sequential(layer.to_q, torch.nn.Linear(16, 16))
    changed = layer(x)
    layer.unpack()
    assert torch.equal(changed, layer(x))
    assert relative_error(changed, before) > 1e-3


def test_fused_projections_still_train(models):
    _, ours, given = models
    ours(**given).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    ours.fuse_qkv_projections()
    ours(**given).square().mean().backward()
    assert all(torch.allclose(p.grad, expected[name]) for name, p in ours.named_parameters())


@torch.no_grad()
def test_fused_projections_survive_a_cast(models):
    _, ours, given = models
    ours.fuse_qkv_projections()
    ours.to(torch.float64)
    assert all(in_use(layer) for layer in ours.attention_layers().values())
    given = {key: value.double() if key != "timestep" and value is not None else value for key, value in given.items()}
    fused = ours(**given)
    ours.unfuse_qkv_projections()
    assert relative_error(fused, ours(**given)) <= 1e-12


@torch.no_grad()
def test_the_autoencoder_fuses_as_diffusers_does():
    theirs = diffusers.AutoencoderKL(**VAE).eval()
    ours = AutoencoderKL.from_weights(theirs.config, theirs.state_dict(), None)
    theirs.fuse_qkv_projections()
    ours.fuse_qkv_projections()
    assert all(layer.packed.bias is not None for layer in ours.attention_layers().values())
    picture = torch.rand(1, 3, 32, 32)
    assert relative_error(ours(picture), theirs(picture).sample) <= 1e-5


def test_xformers_that_is_not_installed(models, monkeypatch):
    _, ours, _ = models
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(FeatureUnavailable, match="pip install xformers"):
        ours.enable_xformers_memory_efficient_attention()


def fake_xformers(monkeypatch) -> list[object]:
    """A module of that name and signature, computing with torch; returns the kernels that were asked for."""
    asked = []

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        asked.append(op)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    ops = types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setitem(sys.modules, "xformers", types.SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return asked


def test_xformers_needs_a_cuda_device(models, monkeypatch):
    _, ours, _ = models
    fake_xformers(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FeatureUnavailable, match="CUDA"):
        ours.enable_xformers_memory_efficient_attention()


@torch.no_grad()
def test_xformers_is_used_and_put_away_again(models, monkeypatch):
    _, ours, given = models
    whole = ours(**given)
    asked = fake_xformers(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ours.enable_xformers_memory_efficient_attention("a kernel")
    assert relative_error(ours(**given), whole) <= 1e-6
    assert asked == ["a kernel"] * len(ours.attention_layers())
    ours.disable_xformers_memory_efficient_attention()
    assert torch.equal(ours(**given), whole)
    assert len(asked) == len(ours.attention_layers())
