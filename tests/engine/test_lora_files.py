"""Files that are not what they should be: each is refused with its own error and a reason."""

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from tests.engine import lora_samples as samples
from worker.engine.errors import LoraInvalid, LoraNonFinite, UnsafeWeightsFormat
from worker.engine.lora import TargetTable, read_lora
from worker.engine.lora.file import read_file

TABLE = TargetTable.of(*samples.models())
KEYS = [samples.peft_key(samples.LINEAR, role) for role in ("down", "up")]
GOOD = save({KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)})


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


BODY = GOOD[-512:]


def built(header: Any, body: bytes = BODY) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(key: str = KEYS[1], **fields: Any) -> bytes:
    header = header_of(GOOD)
    return built({**header, key: {**header[key], **fields}})


def renamed(name: str) -> bytes:
    header = header_of(GOOD)
    return built({**header, name: header.pop(KEYS[1])})


def twice() -> bytes:
    one = json.dumps(header_of(GOOD))[1:-1]
    return built(("{" + one + ", " + one + "}").encode())


BROKEN = {
    "nothing": (b"", "0 bytes, too few"),
    "less than a length": (GOOD[:5], "5 bytes, too few"),
    "short header": (GOOD[:40], "its header claims"),
    "huge length": (struct.pack("<Q", 2**63) + GOOD[8:], "its header claims 9223372036854775808 bytes"),
    "a large header": (built(b"{" + b" " * (9 << 20) + b"}"), "more than 8 MiB"),
    "bad JSON": (built(b'{"a": '), "no valid JSON"),
    "a number of 5,000 digits": (built(b'{"a": ' + b"9" * 5000 + b"}"), "no valid JSON"),
    "not UTF-8": (built(b'{"\xff": 1}'), "no valid JSON"),
    "deep JSON": (built(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "no valid JSON"),
    "a list": (built(b"[]"), "not a JSON object"),
    "a name twice": (twice(), "stands in it twice"),
    "a name twice, once escaped": (built(b'{"a": {}, "\\u0061": {}}'), "stands in it twice"),
    "no tensors": (save({}), "it holds no tensors"),
    "metadata of numbers": (built({"__metadata__": {"a": 1}, **header_of(GOOD)}), "strings to strings"),
    "5 MB of metadata": (built({"__metadata__": {"a": "x" * 5_000_000}, **header_of(GOOD)}), "more than 4 MiB"),
    "a path for a name": (renamed("../../etc/passwd"), "no name of a tensor"),
    "an escape in a name": (renamed("unet.\x1b[2J.lora_A.weight"), "no name of a tensor"),
    "a field more": (changed(extra=1), "exactly dtype, shape and data_offsets"),
    "no field": (built({KEYS[0]: 5}), "exactly dtype, shape and data_offsets"),
    "a dtype of its own": (changed(dtype="Q4"), "dtype 'Q4'"),
    "a dtype that is a list": (changed(dtype=["F32"]), "dtype ['F32']"),
    "a negative size": (changed(shape=[-32, -2]), "positive integers"),
    "a hundred axes": (changed(shape=[*(1 for _ in range(100)), 32, 2]), "positive integers"),
    "an empty tensor": (changed(shape=[0, 2], data_offsets=[256, 256]), "positive integers"),
    "a size that overflows": (changed(shape=[2**62, 2**62]), "does not take 256 bytes"),
    "a boolean size": (changed(shape=[True, 64]), "positive integers"),
    "three offsets": (changed(data_offsets=[256, 300, 512]), "not two offsets"),
    "offsets the wrong way": (changed(data_offsets=[512, 256]), "does not take -256 bytes"),
    "a size that is not the shape's": (changed(shape=[32, 3]), "does not take 256 bytes"),
    "overlap": (changed(data_offsets=[128, 384]), "overlaps"),
    "hole": (built({**header_of(GOOD), KEYS[1]: {**header_of(GOOD)[KEYS[1]], "data_offsets": [260, 516]}}), "hole"),
    "cut off": (GOOD[:-10], "10 bytes are missing"),
    "trailing bytes": (GOOD + b"x" * 10, "10 bytes trail"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(LoraInvalid) as caught:
        read_lora(data, TABLE)
    assert type(caught.value) is LoraInvalid and reason in str(caught.value)


def test_the_file_they_were_made_from_is_good():
    assert read_lora(GOOD, TABLE).deltas.keys() == {samples.LINEAR}
    assert built(header_of(GOOD)) != GOOD and read_lora(built(header_of(GOOD)), TABLE).deltas  # unaligned is allowed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite(value, dtype):
    up = torch.ones(32, 2, dtype=dtype)
    up[31, 1] = value
    tensors = {KEYS[0]: torch.ones(2, 32, dtype=dtype), KEYS[1]: up}
    for source in (save(tensors), tensors):
        with pytest.raises(LoraNonFinite, match="1 tensors") as caught:
            read_lora(source, TABLE)
        assert KEYS[1] in str(caught.value)


def torch_zip() -> bytes:
    stream = io.BytesIO()
    torch.save({KEYS[0]: torch.ones(2, 32)}, stream)
    return stream.getvalue()


def torch_legacy() -> bytes:
    stream = io.BytesIO()
    torch.save({KEYS[0]: torch.ones(2, 32)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("make", [torch_zip, torch_legacy, *(lambda p=p: pickle.dumps({}, p) for p in (2, 3, 4, 5))])
def test_a_pickle_is_told_by_its_bytes_not_its_name(make: Callable[[], bytes], tmp_path: Path):
    path = tmp_path / "brand.safetensors"
    path.write_bytes(make())
    with pytest.raises(UnsafeWeightsFormat, match="farm-worker convert"):
        read_lora(path, TABLE)


def test_a_header_whose_length_looks_like_a_pickle_is_none():
    text = json.dumps(header_of(GOOD)).encode().ljust(640)
    data = struct.pack("<Q", 640) + text + BODY
    assert data[:2] == pickle.dumps({}, 2)[:2]
    assert read_lora(data, TABLE).deltas.keys() == {samples.LINEAR}


# Where it lies.


def test_a_folder_gives_the_name_diffusers_saves_under_or_its_only_file(tmp_path: Path):
    save_file({KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}, tmp_path / "brand.safetensors")
    assert read_file(tmp_path).source == "brand.safetensors"
    save_file({KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(LoraInvalid, match=r"brand\.safetensors, other\.safetensors: name one with `weight_name`"):
        read_file(tmp_path)
    assert read_file(tmp_path, weight_name="other.safetensors").source == "other.safetensors"
    below = read_file(tmp_path.parent, subfolder=tmp_path.name, weight_name="other.safetensors")
    assert below.tensors.keys() == set(KEYS)
    save_file({KEYS[0]: torch.ones(2, 32)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert read_file(str(tmp_path)).source == "pytorch_lora_weights.safetensors"


def test_a_place_without_a_lora(tmp_path: Path):
    with pytest.raises(LoraInvalid, match="there is no LoRA at"):
        read_file(tmp_path / "gone.safetensors")
    with pytest.raises(LoraInvalid, match="no safetensors file"):
        read_file(tmp_path)
    with pytest.raises(LoraInvalid, match="no file brand"):
        read_file(tmp_path, weight_name="brand.safetensors")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(torch_zip())
    with pytest.raises(UnsafeWeightsFormat, match="only pickles"):
        read_file(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_peft_config_that_cannot_be_read(tmp_path: Path, text: str):
    (tmp_path / "adapter_model.safetensors").write_bytes(GOOD)
    (tmp_path / "adapter_config.json").write_text(text, "latin-1")
    with pytest.raises(LoraInvalid, match=r"adapter_config\.json"):
        read_file(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000 + "]" * 100_000], ids=["cut", "list", "deep"])
def test_metadata_that_cannot_be_read(text: str):
    data = save({KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}, {"lora_adapter_metadata": text})
    with pytest.raises(LoraInvalid, match="lora_adapter_metadata"):
        read_lora(data, TABLE)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "no tensors"),
        ({1: torch.ones(2)}, "strings for keys"),
        ({KEYS[0]: [1.0]}, "no tensor"),
        ({KEYS[0]: torch.ones(2, dtype=torch.complex64)}, "no tensor"),
        ({KEYS[0]: torch.ones(0, 2)}, "empty"),
    ],
)
def test_a_dict_that_is_none_of_tensors(tensors, reason):
    with pytest.raises(LoraInvalid, match=reason):
        read_lora(tensors, TABLE)


def test_the_fingerprint_is_the_contents_and_nothing_else(tmp_path: Path):
    tensors = {KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}
    same = dict(reversed(tensors.items()))
    assert read_lora(tensors, TABLE).fingerprint == read_lora(same, TABLE).fingerprint
    other = {**tensors, KEYS[1]: torch.full((32, 2), 2.0)}
    assert read_lora(tensors, TABLE).fingerprint != read_lora(other, TABLE).fingerprint
    (tmp_path / "a.safetensors").write_bytes(GOOD)
    assert read_lora(tmp_path / "a.safetensors", TABLE).fingerprint == read_lora(GOOD, TABLE).fingerprint


def test_a_dict_is_copied_so_that_later_changes_do_not_reach_the_lora():
    tensors = {KEYS[0]: torch.ones(2, 32), KEYS[1]: torch.ones(32, 2)}
    lora = read_lora(tensors, TABLE)
    tensors[KEYS[1]].zero_()
    assert lora.deltas[samples.LINEAR].weight().abs().sum() > 0
