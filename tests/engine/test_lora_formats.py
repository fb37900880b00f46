"""Every format is read into exactly the change it stands for: ΔW against a float64 oracle, key by key."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.engine import lora_samples as samples
from worker.engine.errors import LoraIncompatible, LoraInvalid, LoraNoEffect
from worker.engine.lora import TargetTable, read_lora
from worker.engine.lora.deltas import LowRank

UNET, TEXT_ENCODER = samples.models()
TABLE = TargetTable.of(UNET, TEXT_ENCODER)
SHAPES = {name: TABLE.targets[name].shape for name in samples.NAMES}


def base(name: str) -> torch.Tensor:
    return samples.weight_of(UNET, TEXT_ENCODER, name).detach()


def make(family: str, seed: int = 0, rank: int = 3) -> dict[str, samples.Roles]:
    draw = samples.Draw(seed)
    return {name: samples.FAMILIES[family](draw, shape, rank) for name, shape in SHAPES.items()}


def assert_changes(found, files, scale=lambda name: 1.0) -> None:
    assert found.deltas.keys() == files.keys()
    for name, delta in found.deltas.items():
        expected = samples.oracle(files[name], SHAPES[name]) * scale(name)
        assert delta.shape == SHAPES[name]
        assert samples.relative(delta.weight(torch.float64), expected) < 1e-6, name
        assert samples.relative(delta.change(base(name), 0.5), 0.5 * expected) < 1e-5, name


@pytest.mark.parametrize("family", samples.FAMILIES)
def test_every_family_in_kohyas_spelling_with_an_alpha_of_its_own_each(family):
    files = make(family)
    alphas = {name: 0.5 + i for i, name in enumerate(files)}
    with_alpha = {name: {**roles, "alpha": torch.tensor(alphas[name])} for name, roles in files.items()}
    # LyCORIS gives two full Kronecker factors no scale.
    scale = (lambda name: 1.0) if family == "LoKr, full" else (lambda name: alphas[name] / 3)
    assert_changes(read_lora(samples.write(with_alpha, samples.kohya_key), TABLE), files, scale)


def test_without_an_alpha_the_scale_is_one():
    files = make("LoRA")
    assert_changes(read_lora(samples.write(files, samples.kohya_key), TABLE), files)


def old_diffusers(name: str, role: str) -> str:
    layer = "lora" if name.startswith("unet") else "lora_linear_layer"
    return f"{name}.{layer}.{role}.weight"


def attention_processors(name: str, role: str) -> str:
    renamed = name.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
    for new, old in (("q_proj", "to_q"), ("out_proj", "to_out"), ("to_out.0", "to_out")):
        renamed = renamed.replace(new, old)
    return f"{renamed}_lora.{role}.weight"


def peft_model(name: str, role: str) -> str:
    return f"base_model.model.{name.partition('.')[2]}.lora_{'A' if role == 'down' else 'B'}.weight"


def peft_named(name: str, role: str) -> str:
    return f"{name}.lora_{'A' if role == 'down' else 'B'}.my_adapter.weight"


def kohya_first_encoder(name: str, role: str) -> str:
    return samples.kohya_key(name, role).replace("lora_te_", "lora_te1_")


def flat_text_encoder(name: str, role: str) -> str:
    return samples.peft_key(name, role).replace("text_model.", "")


@pytest.mark.parametrize(
    "key",
    [samples.peft_key, old_diffusers, peft_model, peft_named, kohya_first_encoder, flat_text_encoder],
    ids=lambda key: key.__name__,
)
def test_every_spelling_of_lora(key):
    files = make("LoRA")
    assert_changes(read_lora(samples.write(files, key), TABLE), files)


def test_attention_processors_with_and_without_the_components_name():
    names = (samples.LINEAR, samples.CROSS, samples.OUT, samples.TEXT, samples.TEXT_OUT)
    files = {name: roles for name, roles in make("LoRA").items() if name in names}
    assert_changes(read_lora(samples.write(files, attention_processors), TABLE), files)
    unet = {name: roles for name, roles in files.items() if name.startswith("unet")}
    bare = samples.write(unet, lambda name, role: attention_processors(name, role).removeprefix("unet."))
    assert_changes(read_lora(bare, TABLE), unet)


def test_tensors_pair_by_name_in_whatever_order_they_come():
    files = make("LoRA")
    tensors = {samples.kohya_key(name, role): t for name, roles in files.items() for role, t in roles.items()}
    ups = {key: t for key, t in tensors.items() if "lora_up" in key}
    shuffled = dict([*reversed(ups.items()), *((k, t) for k, t in tensors.items() if k not in ups)])
    assert_changes(read_lora(shuffled, TABLE), files)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_of_any_float_dtype(dtype):
    draw = samples.Draw(1, dtype)
    files = {name: samples.lora(draw, shape, 3) for name, shape in SHAPES.items()}
    assert_changes(read_lora(samples.write(files, samples.peft_key), TABLE), files)


def test_a_low_rank_delta_gives_its_factors():
    delta = read_lora(samples.write(make("LoCon"), samples.kohya_key), TABLE).deltas[samples.CONV]
    assert isinstance(delta, LowRank) and delta.rank == 3
    product = delta.scale * delta.up @ delta.down
    assert samples.relative(product.view(delta.shape), delta.weight()) < 1e-6


def test_a_linear_lora_fits_a_point_convolution_and_the_other_way_round():
    roles = samples.lora(samples.Draw(0), SHAPES[samples.POINT], 2)
    flat = {role: tensor.flatten(1) for role, tensor in roles.items()}
    found = read_lora(samples.write({samples.POINT: flat}, samples.kohya_key), TABLE)
    assert_changes(found, {samples.POINT: roles})


# DoRA: the merged weight, not the change, is what the papers give.


def decomposed(base: np.ndarray, change: np.ndarray, magnitude: np.ndarray, axis: int) -> np.ndarray:
    direction = base + change
    norms = np.sqrt((direction**2).sum(axis=tuple(a for a in range(base.ndim) if a != axis), keepdims=True))
    return magnitude.reshape(norms.shape) * direction / norms


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("family", samples.FAMILIES)
def test_dora_scale_decomposes_every_family(family, axis, strength):
    files = make(family, seed=2)
    for name, roles in files.items():
        size = [1] * len(SHAPES[name])
        size[axis] = SHAPES[name][axis]
        roles["dora_scale"] = torch.rand(size, generator=torch.Generator().manual_seed(3)) + 0.5
    deltas = read_lora(samples.write(files, samples.kohya_key), TABLE).deltas
    for name, roles in files.items():
        w = base(name).double().numpy()
        merged = decomposed(w, samples.oracle(roles, SHAPES[name]), roles["dora_scale"].double().numpy(), axis)
        assert samples.relative(deltas[name].change(base(name), strength), strength * (merged - w)) < 1e-5, name


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_pefts_magnitude_takes_the_strength_into_the_direction(strength):
    files = make("LoRA", seed=2)
    for name, roles in files.items():
        rows = SHAPES[name][0]
        # PEFT keeps a convolution's as [1, out, 1, 1]
        shape = (rows,) if len(SHAPES[name]) == 2 else (1, rows, 1, 1)
        roles["magnitude"] = torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.5
    deltas = read_lora(samples.write(files, samples.peft_key), TABLE).deltas
    for name, roles in files.items():
        w = base(name).double().numpy()
        change = strength * samples.oracle(roles, SHAPES[name])
        merged = decomposed(w, change, roles["magnitude"].double().numpy(), 0)
        assert samples.relative(deltas[name].change(base(name), strength), merged - w) < 1e-5, name


# PEFT's config: where the scale of a file without alphas stands.

CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["to_q"], "bias": "none"}


def test_alpha_from_the_header_by_component_and_by_pattern():
    config = {**CONFIG, "alpha_pattern": {"attn2.to_k": 12, f"^{samples.FEED[5:]}": 1.5}, "use_rslora": False}
    metadata = {f"unet.{k}": v for k, v in config.items()} | {"text_encoder.r": 3, "text_encoder.lora_alpha": 24}
    files = make("LoRA")
    alphas = {samples.CROSS: 12, samples.FEED: 1.5} | dict.fromkeys((samples.TEXT, samples.TEXT_FEED), 24)
    alphas[samples.TEXT_OUT] = 24
    found = read_lora(samples.write(files, samples.peft_key, metadata), TABLE)
    assert_changes(found, files, lambda name: alphas.get(name, 6) / 3)


def test_rank_stabilised_lora_divides_by_the_root():
    files = make("LoRA")
    found = read_lora(samples.write(files, samples.peft_key, {**CONFIG, "use_rslora": True}), TABLE)
    assert_changes(found, files, lambda name: 6 / 3**0.5)


def test_a_folder_with_pefts_config(tmp_path: Path):
    files = {name: roles for name, roles in make("LoRA").items() if name.startswith("unet")}
    files[samples.CONV] = samples.lora(samples.Draw(9), SHAPES[samples.CONV], 5)
    tensors = {peft_model(name, role): t for name, roles in files.items() for role, t in roles.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, "rank_pattern": {"resnets.1.conv1": 5}}))
    found = read_lora(tmp_path, TABLE)
    assert_changes(found, files, lambda name: 6 / (5 if name == samples.CONV else 3))
    assert found.fingerprint != read_lora(tensors, TABLE).fingerprint


@pytest.mark.parametrize(("family", "kind"), [("LoHa", "LOHA"), ("LoKr, full", "LOKR")])
def test_loha_and_lokr_of_peft_are_scaled_by_its_config(family, kind):
    files = make(family)
    metadata = {"peft_type": kind, "r": 3, "alpha": 6}
    assert_changes(read_lora(samples.write(files, samples.peft_key, metadata), TABLE), files, lambda name: 2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"something_new": 0.5}, "something_new=0.5"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"r": 4}, "says rank 4, its tensors have 3"),
        ({"r": 0}, "0 for a rank"),
        ({"r": "3"}, "'3' for a rank"),
        ({"lora_alpha": None}, "None for an alpha"),
        ({"lora_alpha": float("nan")}, "nan for an alpha"),
        ({"rank_pattern": {"to_q": 0}}, "0 for a rank"),
        ({"alpha_pattern": [1]}, "where patterns are due"),
        ({"alpha_pattern": {"(a+)+": 1}}, "pattern"),
        ({"alpha_pattern": {".*.*.*.*": 1}}, "pattern"),
        ({"rank_pattern": {"*": 1}}, "pattern"),
    ],
    ids=str,
)
def test_a_config_that_would_change_the_arithmetic_is_refused_by_name(change, words):
    with pytest.raises(LoraInvalid) as caught:
        read_lora(samples.write(make("LoRA"), samples.peft_key, {**CONFIG, **change}), TABLE)
    assert words in str(caught.value)


def test_a_config_without_alpha_is_refused():
    with pytest.raises(LoraInvalid, match="lacks lora_alpha"):
        read_lora(samples.write(make("LoRA"), samples.peft_key, {"r": 3}), TABLE)


# What does not add up.


def tensors_of(files: dict[str, samples.Roles]) -> dict[str, torch.Tensor]:
    return {samples.kohya_key(name, role): t for name, roles in files.items() for role, t in roles.items()}


def test_keys_nothing_explains_are_named_five_of_them_and_counted():
    tensors = tensors_of(make("LoRA")) | {f"lora_unet_conv_in.oft_{i}": torch.ones(2) for i in range(7)}
    with pytest.raises(LoraInvalid, match=r"7 of its 29 keys .*oft_0, .*oft_4, …") as caught:
        read_lora(tensors, TABLE)
    assert caught.value.code == "LoraInvalid"


def test_keys_for_modules_the_model_lacks_are_named_and_counted():
    tensors = tensors_of(make("LoRA")) | {"lora_te2_text_model_x.lora_down.weight": torch.ones(2, 2)}
    with pytest.raises(LoraIncompatible, match=r"1 of its 23 keys .*lora_te2_text_model_x"):
        read_lora(tensors, TABLE)


@pytest.mark.parametrize("key", ["lora_unet_joint_blocks_0.lora_down.weight", "model.diffusion_model.conv.weight"])
def test_no_matching_key_at_all(key):
    with pytest.raises(LoraNoEffect, match="not one of its 1 keys"):
        read_lora({key: torch.ones(2, 2)}, TABLE)


def test_another_bases_width_names_module_expected_and_found():
    roles = samples.lora(samples.Draw(0), (32, 1024), 3)
    with pytest.raises(LoraIncompatible) as caught:
        read_lora(samples.write({samples.CROSS: roles}, samples.kohya_key), TABLE)
    assert all(word in str(caught.value) for word in (samples.CROSS, "32×24", "32×1024", "down 3×1024", "up 32×3"))


def without(role):
    return lambda roles: {r: t for r, t in roles.items() if r != role}


def having(**changes):
    return lambda roles: {**roles, **changes}


@pytest.mark.parametrize(
    ("family", "spoil", "error", "words"),
    [
        ("LoRA", without("up"), LoraInvalid, "lacks up"),
        ("LoRA", without("down"), LoraInvalid, "lacks down"),
        ("LoHa", without("hada_w2_b"), LoraInvalid, "lacks hada_w2_b"),
        ("LoKr, both factored", without("lokr_w1_b"), LoraIncompatible, "neither lokr_w1 alone"),
        ("LoRA", having(lokr_w1=torch.ones(4, 2)), LoraInvalid, "LoKr and LoRA"),
        ("LoRA", having(up=torch.ones(64, 4)), LoraIncompatible, "ranks 4 and 3"),
        ("LoRA", having(alpha=torch.ones(3)), LoraInvalid, "alpha has 3 values"),
        ("LoRA", having(down=torch.ones(3, 64, 3, 3, dtype=torch.int32)), LoraInvalid, "integers"),
        ("LoRA", having(down=torch.ones(3)), LoraIncompatible, "factor of shape 3"),
        ("LoRA", having(dora_scale=torch.ones(7, 1, 1, 1)), LoraIncompatible, "dora_scale of 7×1×1×1"),
        ("LoRA", having(magnitude=torch.ones(7)), LoraIncompatible, "another number of rows"),
        ("LoCon", having(mid=torch.ones(3, 3, 5, 5)), LoraIncompatible, "core of 3×3×5×5"),
        ("LoHa, Tucker", having(hada_t1=torch.ones(2, 3, 3, 3)), LoraIncompatible, "core of 2×3×3×3"),
        ("LoKr, full", having(lokr_w1=torch.ones(5, 2)), LoraIncompatible, "first factor of 5×2"),
        ("LoKr, full", having(lokr_w2=torch.ones(16, 3)), LoraIncompatible, "second factor of 16×3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_belong_together(family, spoil, error, words):
    roles = spoil(samples.FAMILIES[family](samples.Draw(0), (64, 64, 3, 3), 3))
    assert SHAPES[samples.UPSAMPLE] == (64, 64, 3, 3)
    leaves = {"magnitude": "lora_magnitude_vector"}
    tensors = {samples.kohya_key(samples.UPSAMPLE, leaves.get(role, role)): t for role, t in roles.items()}
    with pytest.raises(error, match=words) as caught:
        read_lora(tensors, TABLE)
    assert type(caught.value) is error and samples.UPSAMPLE in str(caught.value)


def test_two_spellings_of_one_module_in_a_file():
    tensors = tensors_of({samples.LINEAR: make("LoRA")[samples.LINEAR]})
    twice = tensors | {key.replace("lora_unet", "lycoris"): t.clone() for key, t in tensors.items()}
    with pytest.raises(LoraInvalid, match="a second"):
        read_lora(twice, TABLE)


def test_an_alpha_beside_a_config_is_ambiguous():
    files = {samples.LINEAR: {**make("LoRA")[samples.LINEAR], "alpha": torch.tensor(1.0)}}
    with pytest.raises(LoraInvalid, match="both a tensor `alpha` and a PEFT config"):
        read_lora(samples.write(files, samples.peft_key, CONFIG), TABLE)
