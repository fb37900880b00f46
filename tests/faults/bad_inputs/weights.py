"""LoRAs and embeddings that are none, or hostile, or not for this model."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

from farm.weights import MAX_HEADER_BYTES, MAX_TENSORS
from tests.faults.bad_inputs.bench import Bench
from tests.faults.bad_inputs.row import Fields, Row

Tensors = dict[str, np.ndarray]


def lora(data: bytes | Callable[[], bytes], ending: str = ".safetensors", **ref: Any) -> Callable[[Bench], Fields]:
    """A job with a LoRA of these bytes."""

    def make(bench: Bench) -> Fields:
        content = data if isinstance(data, bytes) else data()
        return {"loras": [{"path": bench.put(content, f"lora-{abs(hash(content))}{ending}"), **ref}]}

    return make


def embedding(data: bytes, **ref: Any) -> Callable[[Bench], Fields]:
    return lambda bench: {"embeddings": [{"path": bench.put(data, f"word-{abs(hash(data))}.safetensors"), **ref}]}


def _file(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(start: int = 0, end: int = 8, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@cache
def good() -> Mapping[str, np.ndarray]:
    """A LoRA that fits the tests' model."""
    from tests.engine import tiny_checkpoints  # seconds of imports, and only for who runs these rows

    return {name: tensor.numpy() for name, tensor in tiny_checkpoints.lora("inpaint").items()}


def _changed(change: Callable[[Tensors], object]) -> Callable[[], bytes]:
    def data() -> bytes:
        tensors = {name: array.copy() for name, array in good().items()}
        change(tensors)
        return save(tensors)

    return data


def _poison(value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[sorted(tensors)[-1]].flat[3] = value

    return change


def _other_base(tensors: Tensors) -> None:
    """As if it had been trained for a model twice as wide."""
    for name, array in tensors.items():
        axis = 1 if ".lora_A" in name else 0
        tensors[name] = np.concatenate([array, array], axis)


def _lone_half(tensors: Tensors) -> None:
    del tensors[next(name for name in sorted(tensors) if ".lora_B" in name)]


def _many() -> bytes:
    count = MAX_TENSORS + 1
    return _file({f"t{n}": _entry(8 * n, 8 * n + 8) for n in range(count)}, b"\0" * 8 * count)


def _torch_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


_PICKLE, _UNSAFE, _INVALID = pickle.dumps({"a": 1}), "UnsafeWeightsFormat", "LoraInvalid"
_TWICE = b'{"a":%b,"a":%b}' % (2 * (json.dumps(_entry()).encode(),))


def _model(what: str, code: str, make: Callable[[Bench], Fields | bytes]) -> Row:
    return Row(what, code, make, bench="model")


WEIGHTS: tuple[Row, ...] = (
    *(
        _model(f"a LoRA named {ending}", _UNSAFE, lora(_PICKLE, ending))
        for ending in (".ckpt", ".bin", ".pt", ".pth", ".PKL")
    ),
    _model("a pickle renamed .safetensors", _UNSAFE, lora(_PICKLE)),
    _model("torch's ZIP of pickles renamed .safetensors", _UNSAFE, lora(_torch_file())),
    _model("a LoRA of 0 bytes", _INVALID, lora(b"")),
    _model("a LoRA that is an HTML page", _INVALID, lora(b"<!DOCTYPE html><html><body>404</body></html>")),
    _model("a Git LFS pointer", _INVALID, lora(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")),
    _model("safetensors: short", _INVALID, lora(b"\x08")),
    _model("safetensors: huge length", _INVALID, lora(_file({"a": _entry()}, length=1 << 40))),
    _model("safetensors: header over 16 MB", _INVALID, lora(lambda: _file(b"{" + b" " * MAX_HEADER_BYTES + b"}"))),
    _model("safetensors: header longer than the file", _INVALID, lora(_file({"a": _entry()}, length=4000))),
    _model("safetensors: bad JSON", _INVALID, lora(_file(b'{"a": '))),
    _model("safetensors: JSON 200,000 deep", _INVALID, lora(_file(b'{"a":' + b"[" * 200_000))),
    _model("safetensors: overflow shape", _INVALID, lora(_file({"a": _entry(shape=(1 << 62, 1 << 62, 4))}))),
    _model("safetensors: overlap", _INVALID, lora(_file({"a": _entry(), "b": _entry(4, 12)}, b"\0" * 12))),
    _model("safetensors: hole", _INVALID, lora(_file({"a": _entry(), "b": _entry(12, 20)}, b"\0" * 20))),
    _model("safetensors: trailing bytes", _INVALID, lora(_file({"a": _entry()}, b"\0" * 9))),
    _model("safetensors: bad dtype", _INVALID, lora(_file({"a": _entry(dtype="F31")}))),
    _model("safetensors: tensors cut short", _INVALID, lora(_file({"a": _entry()}, b"\0" * 7))),
    _model("duplicate keys, which the library takes", _INVALID, lora(_file(_TWICE))),
    _model("no tensors at all, which the library takes", _INVALID, lora(_file({}, b""))),
    _model("a tensor named ../a, which the library takes", _INVALID, lora(_file({"../a": _entry()}))),
    _model("a tensor name with an escape sequence", _INVALID, lora(_file({"a\x1b[31m": _entry()}))),
    _model("5 MB of metadata, which the library takes", _INVALID,
           lora(_file({"__metadata__": {"a": "x" * 5_000_000}, "a": _entry()}))),
    _model("20,001 tensors", _INVALID, lora(_many)),
    _model("NaN among the weights", "LoraNonFinite", lora(_changed(_poison(float("nan"))))),
    _model("Inf among the weights", "LoraNonFinite", lora(_changed(_poison(float("inf"))))),
    _model("the shape of another base model", "LoraIncompatible", lora(_changed(_other_base))),
    _model("half of a pair is missing", _INVALID, lora(_changed(_lone_half))),
    _model("no key matches", "LoraNoEffect", lora(save({
        "unet.elsewhere.to_q.lora_A.weight": np.ones((4, 8), np.float32),
        "unet.elsewhere.to_q.lora_B.weight": np.ones((8, 4), np.float32),
    }))),
    _model("the hash differs", "LoraHashMismatch", lora(_changed(lambda tensors: None), sha256="0" * 64)),
    _model("there is no such LoRA", "LoraNotFound",
           lambda bench: {"loras": [{"path": f"{bench.inputs}/none.safetensors"}]}),
    _model("a LoRA over the byte cap", "ObjectTooLarge", lora(lambda: b"\0" * 40_000_001)),
    _model("an embedding that is a pickle", _UNSAFE, embedding(_PICKLE, token="<w>")),
    _model("an embedding that is rubbish", "EmbeddingInvalid", embedding(b"rubbish" * 99, token="<w>")),
    _model("an embedding of another width", "EmbeddingInvalid",
           embedding(save({"<w>": np.ones((1, 7), np.float32)}), token="<w>")),
    _model("NaN in an embedding", "EmbeddingInvalid", embedding(save({"<w>": np.full((1, 32), np.nan, np.float32)}))),
    _model("an embedding with 5 MB of metadata", "EmbeddingInvalid",
           embedding(_file({"__metadata__": {"a": "x" * 5_000_000}, "a": _entry()}))),
    _model("an IP-Adapter of rubbish", "CheckpointInvalid", lambda bench: {
        "ip_adapter": {"path": bench.put(b"rubbish" * 99, "no-ip.safetensors"), "image": bench.good["image"]}
    }),
    _model("an IP-Adapter for a model that cannot have one", "FeatureUnavailable", lambda bench: {
        "ip_adapter": {"path": bench.put(save({"a": np.ones(2)}), "ip.safetensors"), "image": bench.good["image"]}
    }),
)  # fmt: skip
