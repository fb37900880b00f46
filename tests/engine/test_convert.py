"""Pickles become safetensors, in another process, and nothing in them runs."""

import json
import os
import shutil
import sys
import types
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from worker.engine import checkpoints
from worker.engine.convert import _main, convert
from worker.engine.errors import CheckpointInvalid, InvalidParameter, UnsafeWeightsFormat
from worker.engine.ip_adapter import read_ip_adapter

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.alpha": torch.tensor(4.0), "half": torch.ones(2).half()}


@pytest.fixture
def same_process(monkeypatch, capsys) -> None:
    """The child's work done here: what is converted how depends on no process, and one takes seconds to start."""

    def run(command, **_):
        code = _main(*map(Path, command[-2:]))
        return types.SimpleNamespace(stdout=capsys.readouterr().out, stderr="", returncode=code)

    monkeypatch.setattr("worker.engine.convert.subprocess.run", run)


def pickled(path: Path, content: object, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [TENSORS, {"state_dict": TENSORS, "epoch": 3, "optimizer_states": [{"x": torch.ones(3)}]}],
    ids=["lora", "checkpoint"],
)
def test_tensors_survive_bit_for_bit(same_process, tmp_path, content, zipped):
    result = convert(pickled(tmp_path / "in.ckpt", content, zipped), tmp_path / "out.safetensors")
    assert (result.files, result.tensors) == (1, 3)
    written = load_file(result.target)
    assert written.keys() == TENSORS.keys()
    assert all(torch.equal(written[name], t) and written[name].dtype == t.dtype for name, t in TENSORS.items())


def test_parameters_views_and_shared_memory(same_process, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    content = {"parameter": torch.nn.Parameter(base), "view": base.t(), "same": base}
    written = load_file(convert(pickled(tmp_path / "in.pt", content), tmp_path / "out.safetensors").target)
    assert torch.equal(written["parameter"], base)
    assert torch.equal(written["view"], base.t())
    assert torch.equal(written["same"], base)


def test_an_embedding_of_a1111_keeps_its_word(same_process, tmp_path):
    vectors = torch.randn(2, 32)
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "brand", "step": 100}
    target = convert(pickled(tmp_path / "in.pt", content), tmp_path / "out.safetensors").target
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "name": "brand"}
        assert list(file.keys()) == ["string_to_param.*"]
        assert torch.equal(file.get_tensor("string_to_param.*"), vectors)


def test_the_groups_of_an_ip_adapter_become_prefixes(same_process, tmp_path):
    groups = {"image_proj": {"proj.weight": torch.ones(2, 3)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(4)}}
    read = read_ip_adapter(convert(pickled(tmp_path / "in.bin", groups), tmp_path / "out.safetensors").target)
    assert {group: list(tensors) for group, tensors in read.items()} == {g: list(t) for g, t in groups.items()}


def test_lightning_notes_beside_the_weights_do_no_harm(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, module)
    content = {"state_dict": TENSORS, "callbacks": {module.ModelCheckpoint: {"best_model_path": "x"}}}
    source = pickled(tmp_path / "in.ckpt", content)
    assert convert(source, tmp_path / "out.safetensors").tensors == 3


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(same_process, tmp_path, zipped):
    refuses_the_bomb(tmp_path, zipped)


def test_code_in_a_pickle_does_not_run_in_the_child_either(tmp_path):
    refuses_the_bomb(tmp_path, zipped=True)


def refuses_the_bomb(tmp_path: Path, zipped: bool) -> None:
    source = pickled(tmp_path / "in.bin", {"a": torch.ones(1), "b": Bomb(tmp_path / "exploded")}, zipped)
    with pytest.raises(UnsafeWeightsFormat, match="without running code"):
        convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "exploded").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin"]


def test_the_child_sees_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environments = []

    def spy(command, env, **_):
        environments.append(env)
        return types.SimpleNamespace(stdout='{"files": 1, "tensors": 1}\n', stderr="", returncode=0)

    monkeypatch.setattr("worker.engine.convert.subprocess.run", spy)
    convert(pickled(tmp_path / "in.pt", TENSORS), tmp_path / "out.safetensors")
    assert "PATH" in environments[0]
    assert "secret" not in environments[0].values()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 1, "name": "nothing"}, "no tensors"),
        (torch.ones(3), "holds a Tensor"),
        ([torch.ones(3)], "holds a list"),
    ],
)
def test_what_holds_no_named_tensors(same_process, tmp_path, content, says):
    with pytest.raises(CheckpointInvalid, match=says):
        convert(pickled(tmp_path / "in.pt", content), tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 broken archive", b"\x80\x02 broken pickle"])
def test_what_is_no_readable_pickle(same_process, tmp_path, content):
    (tmp_path / "in.pt").write_bytes(content)
    with pytest.raises((CheckpointInvalid, UnsafeWeightsFormat)):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_is_overwritten_and_a_missing_source_is_named(tmp_path):
    source = pickled(tmp_path / "in.pt", TENSORS)
    (tmp_path / "out.safetensors").write_text("precious")
    with pytest.raises(InvalidParameter, match="nothing is overwritten"):
        convert(source, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    with pytest.raises(CheckpointInvalid, match="is missing"):
        convert(tmp_path / "nowhere.ckpt", tmp_path / "other.safetensors")


@pytest.mark.parametrize("save", [{}, {"variant": "fp16"}])
def test_a_whole_folder(same_process, tiny_checkpoint, tmp_path, save):
    source = tiny_checkpoint(safety_checker=True)
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(source)
    pipe.save_pretrained(tmp_path / "old", safe_serialization=True, **save)
    # transformers 5 no longer writes pickles: write them as it used to
    for path in (tmp_path / "old").rglob("*.safetensors"):
        old = path.name.replace("model.", "pytorch_model.", 1) if path.name.startswith("model.") else path.name
        torch.save(load_file(path), path.with_name(old.replace(".safetensors", ".bin")))
        path.unlink()
    with pytest.raises(UnsafeWeightsFormat):
        checkpoints.load_components(tmp_path / "old", **save)

    result = convert(tmp_path / "old", tmp_path / "new")
    assert result.files == 4
    assert not list(result.target.rglob("*.bin"))
    ours, expected = checkpoints.load_components(result.target, **save), checkpoints.load_components(source)
    for name in ("unet", "vae", "text_encoder", "safety_checker"):
        weights = expected[name].state_dict()
        assert all(torch.equal(t, weights[key]) for key, t in ours[name].state_dict().items())


def test_a_folder_of_shards(same_process, tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint(), tmp_path / "old"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    names = sorted(tensors)
    parts = {f"diffusion_pytorch_model-0000{k + 1}-of-00002.bin": names[k::2] for k in range(2)}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, weights.with_name(file))
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    weights.with_name("diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(folder, tmp_path / "new")
    unet = checkpoints.load_component(tmp_path / "new", "unet")
    assert all(torch.equal(t, tensors[name]) for name, t in unet.state_dict().items())


def test_a_folder_with_nothing_to_convert(same_process, tiny_checkpoint, tmp_path):
    with pytest.raises(CheckpointInvalid, match="nothing to convert"):
        convert(tiny_checkpoint(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
