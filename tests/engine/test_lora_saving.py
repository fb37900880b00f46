"""LoRAs written in diffusers' format: read back here and there, and misuse of any adapter method changes nothing."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.engine import lora_samples as samples
from tests.engine.lora_pair import Oracle, Ours, assert_equal, both
from worker.engine.errors import InvalidParameter, LoraIncompatible, UnsafeWeightsFormat
from worker.engine.lora import LoraAdapters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")


@pytest.fixture
def pair() -> tuple[Ours, Oracle]:
    return Ours(), Oracle()


def bare(component: str, seed: int = 1) -> dict[str, Tensor]:
    """The layers of one component as PEFT gives them: without the component's name."""
    prefix = f"{component}."
    return {k.removeprefix(prefix): t for k, t in samples.simple_lora(seed).items() if k.startswith(prefix)}


@pytest.mark.parametrize("with_metadata", [False, True])
def test_what_is_saved_is_read_back_here_and_by_diffusers(pair, tmp_path: Path, with_metadata: bool):
    layers = {f"{c}_lora_layers": bare(c) for c in ("unet", "text_encoder")}
    if with_metadata:
        config = {"r": 2, "lora_alpha": 5, "bias": "none"}
        modules = {"unet": {"to_q", "to_k", "to_out.0", "net.0.proj", "proj_in", "conv1", "conv"}}
        modules["text_encoder"] = {"q_proj", "fc1", "out_proj"}
        for component, names in modules.items():
            exact = {k.split(".lora_")[0].removeprefix("text_model.") for k in layers[f"{component}_lora_layers"]}
            assert all(any(path.endswith(n) for n in names) for path in exact)
            layers[f"{component}_lora_adapter_metadata"] = {**config, "target_modules": exact}
    LoraAdapters.save_lora_weights(tmp_path / "new", **layers)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert load_file(tmp_path / "new" / "pytorch_lora_weights.safetensors").keys() == samples.simple_lora(1).keys()
    both(pair, "load_lora_weights", str(tmp_path / "new"))
    assert_equal(*pair)
    direct = Ours()
    direct.lora.load_lora_weights(samples.simple_lora(1))
    same = all(torch.equal(a, b) for a, b in zip(direct.outputs(), pair[0].outputs(), strict=True))
    assert same is not with_metadata


def test_diffusers_saves_the_same_file(tmp_path: Path):
    layers = {f"{c}_lora_layers": bare(c) for c in ("unet", "text_encoder")}
    metadata = {"unet_lora_adapter_metadata": {"r": 2, "lora_alpha": 5, "target_modules": {"to_q"}}}
    LoraAdapters.save_lora_weights(tmp_path / "ours", **layers, **copy.deepcopy(metadata), weight_name="x.safetensors")
    Oracle.save_lora_weights(tmp_path / "theirs", **layers, **copy.deepcopy(metadata), weight_name="x.safetensors")
    ours, theirs = (safe_open(tmp_path / who / "x.safetensors", "pt") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours.get_tensor(key), theirs.get_tensor(key)) for key in theirs.keys())  # noqa: SIM118 (no dict)
    read = [json.loads(f.metadata()["lora_adapter_metadata"]) for f in (ours, theirs)]
    assert read[0] == read[1] and ours.metadata()["format"] == "pt"


def test_modules_can_be_saved_and_layers_that_share_memory(tmp_path: Path):
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for key, tensor in bare("unet").items():
                self.register_buffer(key.replace(".", "/"), tensor)

        def state_dict(self, *args, **kwargs):
            return {key.replace("/", "."): t for key, t in super().state_dict(*args, **kwargs).items()}

    LoraAdapters.save_lora_weights(tmp_path, unet_lora_layers=Layers())
    assert load_file(tmp_path / "pytorch_lora_weights.safetensors").keys() == {f"unet.{k}" for k in bare("unet")}
    one = torch.ones(32, 2)
    LoraAdapters.save_lora_weights(tmp_path, unet_lora_layers={"a.lora_B.weight": one, "b.lora_B.weight": one})
    assert len(load_file(tmp_path / "pytorch_lora_weights.safetensors")) == 2


def test_a_save_function_takes_the_place_of_safetensors_and_only_the_main_process_saves(tmp_path: Path):
    saved = {}
    LoraAdapters.save_lora_weights(
        tmp_path, bare("unet"), save_function=lambda state, path: saved.update({path: state})
    )
    assert saved.keys() == {str(tmp_path / "pytorch_lora_weights.safetensors")}
    LoraAdapters.save_lora_weights(tmp_path / "none", bare("unet"), is_main_process=False)
    assert not (tmp_path / "none").exists()


# Misuse: an error with the argument's name, and nothing changed.

MISUSE = {
    "a name twice": (lambda o, _: o.load_lora_weights(samples.simple_lora(2), adapter_name="a"), "`adapter_name` 'a'"),
    "hotswap of none": (lambda o, _: o.load_lora_weights({}, adapter_name="z", hotswap=True), "`hotswap`"),
    "an unknown option": (lambda o, _: o.load_lora_weights(samples.simple_lora(2), wieght_name="x"), "`wieght_name`"),
    "an unknown adapter": (lambda o, _: o.set_adapters(["a", "z"]), "`adapter_names` has 'z'; loaded are a"),
    "weights of another length": (lambda o, _: o.set_adapters(["a"], [1, 2]), "`adapter_weights` has 2 entries for 1"),
    "a weight that is no number": (lambda o, _: o.set_adapters("a", "1"), "`adapter_weights` must hold numbers"),
    "an unknown component": (lambda o, _: o.set_adapters("a", {"vae": 1}), "`adapter_weights` has 'vae'"),
    "an unknown part": (lambda o, _: o.set_adapters("a", {"unet": {"left": 1}}), "has the part 'left'"),
    "a block without attention": (lambda o, _: o.set_adapters("a", {"unet": {"up": {"block_0": 1}}}), "up.'block_0'"),
    "too many layers": (
        lambda o, _: o.set_adapters("a", {"unet": {"up": {"block_1": [1, 2, 3]}}}),
        "has 3 numbers for",
    ),
    "two numbers for mid": (lambda o, _: o.set_adapters("a", {"unet": {"mid": [1, 2]}}), "has 2 numbers for mid"),
    "a weight that is not finite": (lambda o, _: o.set_adapters("a", float("nan")), "`scale` must be finite"),
    "deleting an unknown one": (lambda o, _: o.delete_adapters("z"), "`adapter_names` has 'z'"),
    "fusing an unknown one": (lambda o, _: o.fuse_lora(adapter_names=["z"]), "`adapter_names` has 'z'"),
    "fusing nothing": (lambda o, _: o.fuse_lora([]), "`components` must be some of"),
    "fusing the VAE": (lambda o, _: o.fuse_lora(["vae"]), "`components` must be some of"),
    "unfusing the VAE": (lambda o, _: o.unfuse_lora(["vae"]), "`components` must be some of"),
    "saving nothing": (lambda o, tmp: o.save_lora_weights(tmp), "`unet_lora_layers`"),
    "saving a pickle": (
        lambda o, tmp: o.save_lora_weights(tmp, bare("unet"), safe_serialization=False),
        "`safe_serialization`",
    ),
    "saving into a file": (lambda o, _: o.save_lora_weights(__file__, bare("unet")), "`save_directory`"),
    "saving objects": (
        lambda o, tmp: o.save_lora_weights(tmp, bare("unet"), unet_lora_adapter_metadata={"r": object()}),
        "`unet_lora_adapter_metadata`",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_refused_and_changes_nothing(name, tmp_path: Path):
    do, words = MISUSE[name]
    ours = Ours()
    ours.lora.load_lora_weights(samples.simple_lora(1), adapter_name="a")
    before, lists = ours.outputs(), (ours.lora.get_list_adapters(), ours.lora.get_active_adapters())
    with pytest.raises(InvalidParameter) as caught:
        do(ours.lora, tmp_path)
    assert words in str(caught.value)
    assert (ours.lora.get_list_adapters(), ours.lora.get_active_adapters()) == lists
    assert all(torch.equal(a, b) for a, b in zip(ours.outputs(), before, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_a_bad_lora_between_two_good_ones_leaves_no_trace():
    ours, untroubled = Ours(), Ours()
    bad = samples.simple_lora(2)
    bad[samples.peft_key(samples.TEXT_OUT, "up")] = torch.ones(40, 2)
    ours.lora.load_lora_weights(samples.simple_lora(1))
    with pytest.raises(LoraIncompatible):
        ours.lora.load_lora_weights(bad)
    with pytest.raises(UnsafeWeightsFormat):
        ours.lora.load_lora_weights(samples.simple_lora(2), use_safetensors=False)
    ours.lora.load_lora_weights(samples.simple_lora(3))
    for seed in (1, 3):
        untroubled.lora.load_lora_weights(samples.simple_lora(seed))
    assert ours.lora.get_list_adapters() == untroubled.lora.get_list_adapters()
    assert all(torch.equal(a, b) for a, b in zip(ours.outputs(), untroubled.outputs(), strict=True))
