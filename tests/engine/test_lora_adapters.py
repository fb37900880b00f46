"""The adapter methods against diffusers 0.42.1 and PEFT: the same files and calls, the same outputs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor

from tests.engine import lora_samples as samples
from tests.engine.lora_pair import Oracle, Ours, assert_equal, both
from worker.engine.errors import LoraNonFinite
from worker.engine.lora import TargetTable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")


@pytest.fixture
def pair() -> tuple[Ours, Oracle]:
    return Ours(), Oracle()


# Formats diffusers reads, forward through both networks.


def files(names: tuple[str, ...] = samples.NAMES, seed: int = 1) -> dict[str, samples.Roles]:
    targets = TargetTable.of(*samples.models()).targets
    draw = samples.Draw(seed)
    return {name: samples.lora(draw, targets[name].shape, 3) for name in names}


def as_dict(roles: dict[str, samples.Roles], key: Callable[[str, str], str]) -> dict[str, Tensor]:
    return {key(name, role): tensor for name, parts in roles.items() for role, tensor in parts.items()}


def old_key(name: str, role: str) -> str:
    return f"{name}.{'lora' if name.startswith('unet') else 'lora_linear_layer'}.{role}.weight"


def attn_procs_key(name: str, role: str) -> str:
    for module in ("attn1", "attn2"):
        name = name.replace(f"{module}.", f"{module}.processor.")
    return f"{name.replace('to_out.0', 'to_out')}_lora.{role}.weight"


def kohya_with_alpha() -> dict[str, Tensor]:
    # One alpha for all: of several, diffusers 0.42 loses those of attention (the float64 oracle covers them here).
    roles = {name: {**parts, "alpha": torch.tensor(1.5)} for name, parts in files().items()}
    return as_dict(roles, samples.kohya_key)


def peft_dora() -> dict[str, Tensor]:
    roles = files((samples.LINEAR, samples.CROSS, samples.OUT, samples.FEED, samples.POINT, samples.CONV))
    for parts in roles.values():
        rows = parts["up"].shape[0]
        shape = (rows,) if parts["up"].dim() == 2 else (1, rows, 1, 1)
        parts["magnitude"] = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5
    return as_dict(roles, samples.peft_key)


ATTENTION_NAMES = (samples.LINEAR, samples.CROSS, samples.OUT)
READ_BY_DIFFUSERS = {
    "PEFT": lambda: as_dict(files(), samples.peft_key),
    "diffusers 0.17": lambda: as_dict(files(), old_key),
    "attention processors": lambda: as_dict(files(ATTENTION_NAMES), attn_procs_key),
    "kohya with alpha": kohya_with_alpha,
    "DoRA": peft_dora,
    "UNet alone": lambda: as_dict(files((samples.LINEAR, samples.CONV)), samples.peft_key),
    "text encoder alone": lambda: as_dict(files((samples.TEXT, samples.TEXT_OUT)), samples.peft_key),
}


@pytest.mark.parametrize("weight", [1.0, 0.6])
@pytest.mark.parametrize("make", READ_BY_DIFFUSERS.values(), ids=READ_BY_DIFFUSERS)
def test_a_file_does_what_it_does_in_diffusers(pair, make, weight):
    both(pair, "load_lora_weights", make(), adapter_name="brand")
    both(pair, "set_adapters", "brand", weight)
    assert not pair[0].is_base()
    assert_equal(*pair)


def test_a_saved_files_metadata_scales_it_as_in_diffusers(pair, tmp_path: Path):
    config = {"r": 3, "lora_alpha": 9, "alpha_pattern": {"attn2.to_k": 1.5}, "use_rslora": True}
    (tmp_path / "brand.safetensors").write_bytes(
        samples.write(
            files((*ATTENTION_NAMES, samples.TEXT)),
            samples.peft_key,
            {f"unet.{k}": v for k, v in {**config, "target_modules": ["to_q", "to_k", "to_out.0"]}.items()}
            | {"text_encoder.r": 3, "text_encoder.lora_alpha": 2, "text_encoder.target_modules": ["q_proj"]},
        )
    )
    both(pair, "load_lora_weights", str(tmp_path), weight_name="brand.safetensors")
    assert_equal(*pair)


def test_lokr_equals_diffusers(pair):
    draw, shape = samples.Draw(3), (32, 32)
    # PEFT factorises 32 into 4 × 8 by itself only where the factors are these
    tensors = {f"{samples.LINEAR}.lokr_w1": draw(4, 4), f"{samples.LINEAR}.lokr_w2": draw(8, 8)}
    assert TargetTable.of(*samples.models()).targets[samples.LINEAR].shape == shape
    pair[0].lora.load_lora_weights(tensors)
    pair[1].unet.load_lora_adapter(dict(tensors), prefix="unet")
    assert not pair[0].is_base()
    assert_equal(*pair)


def test_loha_equals_peft(pair):
    ours, oracle = pair
    roles = samples.loha(samples.Draw(3), (32, 32), 3)
    path = samples.LINEAR.removeprefix("unet.")
    config = LoHaConfig(r=3, alpha=6, target_modules=[path])
    inject_adapter_in_model(config, oracle.unet)
    set_peft_model_state_dict(oracle.unet, {f"base_model.model.{path}.{k}": v for k, v in roles.items()}, "default")
    oracle.unet.eval()
    ours.lora.load_lora_weights({f"unet.{path}.{k}": v for k, v in (roles | {"alpha": torch.tensor(6.0)}).items()})
    assert not ours.is_base()
    assert_equal(*pair)


# Several adapters, chosen, weighted, taken away.


def two(pair: tuple[Ours, Oracle], names: tuple[str, ...] = samples.NAMES) -> None:
    both(pair, "load_lora_weights", samples.simple_lora(1, names), adapter_name="a")
    both(pair, "load_lora_weights", samples.simple_lora(2, names, rank=4), adapter_name="b")


def assert_same_lists(ours: Ours, oracle: Oracle) -> None:
    assert ours.lora.get_list_adapters() == oracle.get_list_adapters()
    assert ours.lora.get_active_adapters() == oracle.get_active_adapters()


def test_the_adapter_loaded_last_is_the_active_one(pair):
    two(pair)
    assert pair[0].lora.get_active_adapters() == ["b"]
    assert_same_lists(*pair)
    assert_equal(*pair)


def test_an_adapter_for_one_component_leaves_the_others_choice_alone(pair):
    both(pair, "load_lora_weights", samples.simple_lora(1), adapter_name="a")
    both(pair, "load_lora_weights", samples.simple_lora(2, samples.NAMES[:8]), adapter_name="b")
    assert_same_lists(*pair)
    assert_equal(*pair)


@pytest.mark.parametrize(
    "weights",
    [
        None,
        0.5,
        [0.5, -0.3],
        [None, 2],
        [{"unet": 0.4}, {"unet": 0.4, "text_encoder": 0.9}],
        [{"unet": {"down": 0.2, "mid": 3, "up": {"block_1": [0.7, 1.4]}}}, 0.5],
        [{"unet": {"up": 0.3}, "text_encoder": 0.1}, {"text_encoder": 0.0}],
    ],
    ids=str,
)
def test_weights_mean_what_they_mean_in_diffusers(pair, weights):
    second = ("unet.up_blocks.1.attentions.1.proj_out", "unet.up_blocks.1.resnets.1.conv2")
    two(pair, (*samples.NAMES, *second))
    both(pair, "set_adapters", ["a", "b"], weights)
    assert_same_lists(*pair)
    assert_equal(*pair)


def test_one_dict_holds_for_every_adapter():
    # diffusers 0.42 empties the dict at the first adapter, so that it holds for that one alone
    ours, listed = Ours(), Ours()
    for side, weights in ((ours, {"unet": 0.4}), (listed, [{"unet": 0.4}, {"unet": 0.4}])):
        for seed, name in enumerate("ab"):
            side.lora.load_lora_weights(samples.simple_lora(seed), adapter_name=name)
        side.lora.set_adapters(["a", "b"], weights)
    assert all(torch.equal(a, b) for a, b in zip(ours.outputs(), listed.outputs(), strict=True))


def test_deleting_unloading_and_loading_again(pair):
    two(pair)
    both(pair, "set_adapters", ["a", "b"], [0.5, 0.7])
    both(pair, "delete_adapters", "b")
    assert_same_lists(*pair)
    assert_equal(*pair)
    both(pair, "load_lora_weights", samples.simple_lora(3), adapter_name="b")
    both(pair, "delete_adapters", ["b"])
    assert_same_lists(*pair)
    assert_equal(*pair)
    both(pair, "unload_lora_weights")
    assert pair[0].lora.get_list_adapters() == {} and pair[0].lora.get_active_adapters() == []
    assert pair[0].is_base()
    both(pair, "load_lora_weights", samples.simple_lora(2), adapter_name="a")
    assert_equal(*pair)


def test_disable_and_enable(pair):
    two(pair)
    both(pair, "set_adapters", ["a", "b"], [0.5, 0.7])
    active = pair[0].outputs()
    both(pair, "disable_lora")
    assert pair[0].is_base()
    assert_equal(*pair)
    both(pair, "enable_lora")
    assert_equal(*pair)
    assert all(torch.equal(a, b) for a, b in zip(pair[0].outputs(), active, strict=True))


@pytest.mark.parametrize("scale", [0.5, 0.0, 1.7])
def test_the_calls_scale_multiplies_every_active_adapter(pair, scale):
    both(pair, "load_lora_weights", samples.simple_lora(1, samples.NAMES[:8]), adapter_name="a")
    both(pair, "load_lora_weights", samples.simple_lora(2, samples.NAMES[:8]), adapter_name="b")
    both(pair, "set_adapters", ["a", "b"], [0.5, {"unet": {"mid": 0.2}}])
    before = pair[0].outputs()
    with pair[0].lora.scaled(scale):
        assert_equal(*pair, scale)
    assert all(torch.equal(a, b) for a, b in zip(pair[0].outputs(), before, strict=True))


def test_the_calls_scale_ends_with_a_call_that_fails(pair):
    ours = pair[0]
    ours.lora.load_lora_weights(samples.simple_lora(1))
    before = ours.outputs()
    with pytest.raises(KeyError), ours.lora.scaled(0.3):
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(ours.outputs(), before, strict=True))


def test_default_names_are_counted(pair):
    for seed in (1, 2):
        both(pair, "load_lora_weights", samples.simple_lora(seed))
    assert pair[0].lora.get_list_adapters() == {c: ["default_0", "default_1"] for c in ("unet", "text_encoder")}
    assert_same_lists(*pair)


# Fusing.


def test_fused_adapters_act_at_their_scale_and_come_out_to_the_last_bit(pair):
    ours, _ = pair
    two(pair)
    both(pair, "set_adapters", ["a", "b"], [0.5, 0.7])
    both(pair, "fuse_lora", lora_scale=0.6)
    assert ours.lora.num_fused_loras == 2 and ours.lora.fused_loras == {"a", "b"} == pair[1].fused_loras
    assert_equal(*pair)
    ours.lora.unfuse_lora()
    assert ours.lora.num_fused_loras == 0
    ours.lora.unload_lora_weights()
    assert ours.is_base()


@pytest.mark.parametrize("components", [["unet"], ["text_encoder"]])
def test_one_component_may_be_fused(pair, components):
    two(pair)
    both(pair, "fuse_lora", components, lora_scale=0.6)
    assert_equal(*pair)


def test_fusing_by_name_leaves_the_others_out(pair):
    two(pair)
    both(pair, "set_adapters", ["a", "b"])
    both(pair, "fuse_lora", adapter_names=["a"])
    assert_equal(*pair)
    both(pair, "unfuse_lora")
    assert_equal(*pair)


def test_what_is_fused_stays_when_the_adapters_are_unloaded(pair):
    two(pair)
    both(pair, "fuse_lora", lora_scale=0.6)
    both(pair, "unload_lora_weights")
    assert_equal(*pair)
    both(pair, "load_lora_weights", samples.simple_lora(5), adapter_name="c")
    assert_equal(*pair)
    both(pair, "unload_lora_weights")
    assert_equal(*pair)
    both(pair, "unfuse_lora")
    assert_equal(*pair)


def test_what_is_fused_stays_when_the_adapter_is_deleted(pair):
    two(pair)
    both(pair, "set_adapters", ["a", "b"])
    both(pair, "fuse_lora", adapter_names=["b"], lora_scale=0.6)
    both(pair, "delete_adapters", ["a", "b"])
    assert_same_lists(*pair)
    assert not pair[0].is_base()
    assert_equal(*pair)


def test_the_calls_scale_does_not_reach_fused_adapters(pair):
    both(pair, "load_lora_weights", samples.simple_lora(1, samples.NAMES[:8]))
    both(pair, "fuse_lora")
    with pair[0].lora.scaled(0.3):
        assert_equal(*pair, 0.3)


def test_safe_fusing_refuses_a_sum_that_is_not_finite(pair):
    ours = pair[0]
    ours.lora.load_lora_weights(samples.simple_lora(1))
    before = ours.outputs()
    with pytest.raises(LoraNonFinite):
        ours.lora.fuse_lora(lora_scale=1e39, safe_fusing=True)
    assert ours.lora.num_fused_loras == 0
    assert all(torch.equal(a, b) for a, b in zip(ours.outputs(), before, strict=True))


# Hot swap.


def test_hotswap_replaces_an_adapter_in_place(pair):
    for_unet = samples.NAMES[:8]
    both(pair, "load_lora_weights", samples.simple_lora(1, for_unet), adapter_name="a")
    both(pair, "load_lora_weights", samples.simple_lora(2, for_unet), adapter_name="a", hotswap=True)
    assert_equal(*pair)
    pair[0].lora.load_lora_weights(samples.simple_lora(3, samples.NAMES[8:]), adapter_name="a", hotswap=True)
    assert pair[0].lora.get_list_adapters() == {"text_encoder": ["a"]}
    assert torch.equal(pair[0].outputs()[0], pair[0].base[0])
