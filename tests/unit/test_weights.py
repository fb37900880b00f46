"""Safetensors headers: everything that is wrong is refused by its reason, everything that is right is read exactly."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.errors import CheckpointInvalid, LoraInvalid, LoraNonFinite, UnsafeWeightsFormat
from farm.weights import (
    BYTES,
    MAX_HEADER_BYTES,
    MAX_METADATA_BYTES,
    MAX_TENSORS,
    read_header,
    refuse_non_finite,
    refuse_pickle,
)


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def file(header, data=b"\0" * 8, length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = file({"a": entry()})


def nested(depth):
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


INVALID = {
    "empty": (b"", "only 0 bytes"),
    "short": (b"\x01\0\0", "only 3 bytes"),
    "a length alone": (b"\2\0\0\0\0\0\0\0", "only 8 bytes"),
    "huge length": (file({"a": entry()}, length=1 << 40), "allowed"),
    "a length over the cap": (file({"a": entry()}, length=MAX_HEADER_BYTES + 1), "allowed"),
    "all ones": (b"\xff" * 64, "allowed"),
    "a length beyond the end": (file({"a": entry()}, length=4000), "ends inside its header"),
    "bad JSON": (file(b'{"a": '), "not valid JSON"),
    "text": (file(b"hello world"), "not a JSON object"),
    "a list": (file(b"[1, 2]"), "not a JSON object"),
    "space before the brace": (file(b' {"a": 1}'), "not a JSON object"),
    "two objects": (file(b"{}{}"), "not valid JSON"),
    "not UTF-8": (file(b'{"\xff": 1}'), "not valid JSON"),
    "NaN": (file(b'{"a": NaN}'), "not valid JSON"),
    "a number of 10,000 digits": (file(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "deeply nested": (file(nested(200_000)), "not valid JSON"),
    "no tensors": (file({}, b""), "no tensors"),
    "only metadata": (file({"__metadata__": {"a": "b"}}, b""), "no tensors"),
    "duplicate names": (file(b'{"a":%b,"a":%b}' % (2 * (json.dumps(entry()).encode(),))), "occurs twice"),
    "a name and its escaped twin": (
        file(b'{"a":%b,"\\u0061":%b}' % (2 * (json.dumps(entry()).encode(),))),
        "occurs twice",
    ),
    "duplicate fields": (file(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}'), "occurs twice"),
    "name ../": (file({"../a": entry()}), "tensor name"),
    "name /": (file({"/etc/passwd": entry()}), "tensor name"),
    "name a/../b": (file({"a/../b": entry()}), "tensor name"),
    "name with an ANSI escape": (file({"a\x1b[31m": entry()}), "tensor name"),
    "name with NUL": (file({"a\0": entry()}), "tensor name"),
    "name with a newline": (file({"a\n": entry()}), "tensor name"),
    "name with half a surrogate pair": (file(b'{"\\ud800": 1}'), "tensor name"),
    "name with a backslash": (file({"a\\b": entry()}), "tensor name"),
    "empty name": (file({"": entry()}), "tensor name"),
    "long name": (file({"a" * 513: entry()}), "tensor name"),
    "an entry that is none": (file({"a": 1}), "dtype, shape and data_offsets"),
    "an entry with more": (file({"a": entry() | {"x": 1}}), "dtype, shape and data_offsets"),
    "an entry with less": (file({"a": {"dtype": "F32", "shape": [2]}}), "dtype, shape and data_offsets"),
    "bad dtype": (file({"a": entry(dtype="F31")}), "dtype 'F31'"),
    "dtype of another kind": (file({"a": entry(dtype=["F32"])}), "dtype"),
    "shape of another kind": (file({"a": entry() | {"shape": "2"}}), "shape"),
    "negative shape": (file({"a": entry(shape=(-2,))}), "shape"),
    "shape of booleans": (file({"a": entry() | {"shape": [True, 2]}}), "shape"),
    "shape of fractions": (file({"a": entry() | {"shape": [2.0]}}), "shape"),
    "shape of nine": (file({"a": entry(shape=(1,) * 8 + (2,))}), "shape"),
    "overflow shape": (file({"a": entry(shape=(1 << 62, 1 << 62, 4))}), "does not match"),
    "shape that wraps to the size": (file({"a": entry(shape=((1 << 62) + 2,))}), "does not match"),
    "shape that is smaller": (file({"a": entry(shape=(1,))}), "does not match"),
    "offsets turned round": (file({"a": entry(8, 0)}), "data_offsets"),
    "negative offsets": (file({"a": entry(-8, 0)}), "data_offsets"),
    "three offsets": (file({"a": entry() | {"data_offsets": [0, 4, 8]}}), "data_offsets"),
    "overlap": (file({"a": entry(), "b": entry(4, 12)}, b"\0" * 12), "overlap"),
    "same place": (file({"a": entry(), "b": entry()}), "overlap"),
    "hole at the start": (file({"a": entry(4, 12)}, b"\0" * 12), "hole of 4"),
    "hole": (file({"a": entry(), "b": entry(12, 20)}, b"\0" * 20), "hole of 4"),
    "trailing bytes": (file({"a": entry()}, b"\0" * 9), "1 bytes follow"),
    "a ZIP behind": (file({"a": entry()}, b"\0" * 8 + b"PK\3\4" + b"\0" * 100), "104 bytes follow"),
    "cut short": (file({"a": entry()}, b"\0" * 7), "cut short: 1 bytes"),
    "metadata of another kind": (file({"__metadata__": [], "a": entry()}), "table of strings"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}, "a": entry()}), "table of strings"),
    "5 MB of metadata": (file({"__metadata__": {"a": "x" * 5_000_000}, "a": entry()}), "metadata exceeds"),
    "too many tensors": (
        file({f"t{n}": entry(8 * n, 8 * n + 8) for n in range(MAX_TENSORS + 1)}, b"\0" * 8 * (MAX_TENSORS + 1)),
        "more than 20,000 tensors",
    ),
    "too many tensors, written in another way": (
        file(b'{"x":{"data\\u005foffsets":0}' + b"".join(b',"%d":0' % n for n in range(MAX_TENSORS)) + b"}"),
        "more than 20,000 tensors",
    ),
    "HTML": (b"<!DOCTYPE html><html><body>Not found</body></html>", "allowed"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "allowed"),
    "GGUF": (b"GGUF\3\0\0\0" + b"\0" * 64, "not a JSON object|allowed|ends inside"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_wrong_is_refused_with_its_reason(name, tmp_path):
    data, reason = INVALID[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for source in (data, memoryview(data), path):
        with pytest.raises(LoraInvalid, match=reason) as caught:
            read_header(source)
        assert caught.value.message.isprintable() and len(caught.value.message) < 500
        assert type(caught.value) is LoraInvalid
    with pytest.raises(CheckpointInvalid, match=reason):
        read_header(data, invalid=CheckpointInvalid)


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *[pickle.dumps({"a": [1.0] * 50}, protocol=protocol) for protocol in (2, 3, 4, 5)],
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2) + b"\0" * 100,  # torch < 1.6
        pickle.dumps(1),
        torch_zip(),
    ],
)
def test_a_pickle_by_any_name_is_unsafe(data, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(UnsafeWeightsFormat, match="convert it to safetensors"):
            read_header(source)


def test_a_header_whose_length_looks_like_a_pickles_first_bytes_is_read():
    for length in range(0x0080, 0x0680, 0x100):  # little-endian 80 00, 80 01 … 80 05
        text = json.dumps({"a": entry()}).encode().ljust(length)
        if len(text) == length:
            data = file(text)
            assert data[0] == 0x80 and data[1] <= 5
            assert read_header(data).tensors["a"].shape == (2,)


def test_a_pickle_by_its_name():
    for name in ("s3://b/a.ckpt", "a.bin", "A.PT", "file:///x/a.pth", "a.pkl", "a.safetensors.bin"):
        with pytest.raises(UnsafeWeightsFormat, match="safetensors"):
            refuse_pickle(name)
    for name in ("s3://b/a.safetensors", "bin", "a.bin/b.safetensors", "a.sft"):
        refuse_pickle(name)


# What is right


def test_a_real_file_is_read_as_the_library_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "lora_unet_down.lora_down.weight": rng.normal(size=(4, 320)).astype(np.float16),
        "base_model.model.a-b:c/d+e.lora_A.weight": rng.normal(size=(3, 5, 7)),
        "alpha": np.array(4.0, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "ints": np.arange(5),
        "flags": np.array([True, False]),
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"ss_network_dim": "4", "tags": '{"ä": "\\n"}'})
    data = path.read_bytes()
    header = read_header(data)
    assert header == read_header(path)
    assert dict(header.metadata) == {"ss_network_dim": "4", "tags": '{"ä": "\\n"}'}
    assert header.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = header.tensors[name]
        assert tensor.shape == array.shape
        assert data[header.offset + tensor.start : header.offset + tensor.end] == array.tobytes()
    refuse_non_finite(data, header)


def test_every_dtype_that_is_read_is_one_of_the_formats():
    for dtype, width in BYTES.items():
        data = file({"a": entry(0, 2 * width, dtype=dtype)}, b"\0" * 2 * width)
        assert read_header(data).tensors["a"].dtype == dtype
        ((name, info),) = safetensors.deserialize(data)
        assert (name, info["dtype"], info["shape"]) == ("a", dtype, [2])


def test_padding_after_the_json_and_metadata_up_to_the_limit():
    text = json.dumps({"a": entry()}).encode() + b" " * 7
    assert read_header(file(text)).offset == 8 + len(text)
    read_header(file({"__metadata__": {"a": "x" * (MAX_METADATA_BYTES - 1)}, "a": entry()}))


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(
        st.text("ab./_", min_size=1, max_size=4),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "U8", "F31"]),
                "shape": st.lists(st.integers(-1, 3), max_size=3),
                "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 24),
)
def test_whatever_passes_here_passes_in_the_library_and_means_the_same(header, size):
    data = file(header, b"\0" * size)
    try:
        ours = read_header(data)
    except LoraInvalid:
        return
    theirs = {name: (info["dtype"], tuple(info["shape"])) for name, info in safetensors.deserialize(data)}
    assert theirs == {name: (tensor.dtype, tensor.shape) for name, tensor in ours.tensors.items()}


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=12))
def test_damage_is_refused_or_harmless(place, patch):
    data = GOOD[:place] + patch + GOOD[place + len(patch) :]
    try:
        header = read_header(data)
    except (LoraInvalid, UnsafeWeightsFormat):
        return
    assert len(list(safetensors.deserialize(data))) == len(header.tensors)


def test_the_memory_that_a_hostile_header_can_ask_for_is_bounded():
    code = """
import resource, struct
from farm.errors import LoraInvalid
from farm.weights import MAX_HEADER_BYTES, read_header
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for text in (b'{"a":' + b'[' * (MAX_HEADER_BYTES - 6), b'{"a":[' + b'{},' * (5 << 20) + b'{}]}',
             b'{' + b','.join(b'"%d":0' % n for n in range(1 << 20)) + b'}'):
    try:
        read_header(struct.pack("<Q", len(text)) + text)
    except LoraInvalid:
        continue
    raise SystemExit(1)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# NaN and Inf

FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def numbers(dtype: str, values: list[float]) -> bytes:
    if dtype == "BF16":
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if dtype == "F8_E5M2":
        return (np.array(values, np.float16).view(np.uint16) >> 8).astype(np.uint8).tobytes()
    return np.array(values, FLOATS[dtype]).tobytes()


def judged(dtype: str, data: bytes) -> bool:
    """Whether the data passes."""
    tensors = {"ok": entry(0, 4, (4,), "U8"), "w": entry(4, 4 + len(data), (len(data) // BYTES[dtype],), dtype)}
    whole = file(tensors, b"\xff" * 4 + data)
    try:
        refuse_non_finite(whole, read_header(whole))
    except LoraNonFinite as error:
        assert "'w'" in error.message
        return False
    return True


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E5M2"])
def test_nan_and_inf_are_found_wherever_they_stand(dtype):
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        for place in (0, 1, 6):
            values = [1.5, -0.0, 1e-3, -2.0, 100.0, 0.5, 3.0]
            assert judged(dtype, numbers(dtype, values))
            values[place] = bad
            assert not judged(dtype, numbers(dtype, values))


def test_every_number_of_16_and_8_bits_is_judged_as_arithmetic_does():
    every = np.arange(65536, dtype=np.uint16)
    finite = {
        "F16": np.isfinite(every.view(np.float16)),
        "BF16": np.isfinite((every.astype(np.uint32) << 16).view(np.float32)),
    }
    for dtype, expected in finite.items():
        assert judged(dtype, every[expected].tobytes())
        assert not any(judged(dtype, number.tobytes()) for number in every[~expected][::7])
    every = np.arange(256, dtype=np.uint8)
    expected = np.isfinite((every.astype(np.uint16) << 8).view(np.float16))
    for dtype, fine in (("F8_E5M2", expected), ("F8_E4M3", (every & 0x7F) != 0x7F)):
        assert [judged(dtype, number.tobytes()) for number in every] == fine.tolist()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["F32", "F64"]), st.binary(min_size=8, max_size=64))
def test_any_bytes_are_judged_as_arithmetic_does(dtype, data):
    data = data[: len(data) // 8 * 8]
    assert judged(dtype, data) == bool(np.isfinite(np.frombuffer(data, FLOATS[dtype])).all())


def test_a_bad_number_far_inside_and_across_slices():
    for place in (0, (1 << 19) - 1, 1 << 19, (1 << 20) + 12345):
        array = np.full(1 << 21, 65504, np.float16)
        assert judged("F16", array.tobytes())
        array[place] = np.nan
        assert not judged("F16", array.tobytes())


def test_integers_are_always_finite():
    for dtype in ("U8", "I8", "BOOL", "U16", "I16", "U32", "I32", "U64", "I64"):
        assert judged(dtype, b"\xff" * 8)


def test_no_array_library_is_needed():
    code = "import sys, farm.weights; sys.exit(bool({'numpy', 'torch', 'safetensors', 'boto3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
