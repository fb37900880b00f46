"""A LoRA brought into memory from a file, a folder, bytes or a dict of tensors, and its values checked."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.engine.errors import LoraInvalid, LoraNonFinite, UnsafeWeightsFormat
from worker.engine.lora.header import Entry, read_header

Source = str | os.PathLike[str] | bytes | bytearray | Mapping[str, Tensor]

# What diffusers and PEFT call a file they save, in the order they are looked for in a folder.
WEIGHT_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG_NAME = "adapter_config.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class LoraFile:
    """`tensors` by key, on the CPU and finite; `metadata` is the file's own; `config` PEFT's adapter_config.json.

    `fingerprint` is the SHA-256 (hexadecimal) of the file, or of file and config where there is one.
    """

    source: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None
    fingerprint: str


def read_file(source: Source, *, weight_name: str | None = None, subfolder: str | None = None) -> LoraFile:
    """Read a LoRA from a file, a folder, the bytes of a file, or a dict of tensors.

    In a folder `weight_name` names the file; without it one of `WEIGHT_NAMES` or the only safetensors file is taken.
    Raises `LoraInvalid`, `UnsafeWeightsFormat` (a pickle) or `LoraNonFinite`, each with the reason.
    """
    if isinstance(source, Mapping):
        return _from_tensors(source)
    if isinstance(source, bytes | bytearray):
        return _from_bytes(bytearray(source), "the LoRA", None)
    path = _locate(Path(source), weight_name, subfolder)
    return _from_bytes(_read_bytes(path), path.name, _read_config(path.with_name(CONFIG_NAME)))


def _locate(path: Path, weight_name: str | None, subfolder: str | None) -> Path:
    if path.is_file():
        return path
    folder = path / (subfolder or "")
    if not folder.is_dir():
        raise LoraInvalid(f"there is no LoRA at {folder}: give the path of a safetensors file, or of a folder with one")
    if weight_name is not None:
        if not (folder / weight_name).is_file():
            raise LoraInvalid(f"there is no file {weight_name} in {folder}")
        return folder / weight_name
    found = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
    chosen = [folder / name for name in WEIGHT_NAMES if folder / name in found] or found
    if not chosen:
        if any(p.suffix in _PICKLES for p in folder.iterdir()):
            raise UnsafeWeightsFormat(f"{folder} holds only pickles: convert with `farm-worker convert` to safetensors")
        raise LoraInvalid(f"there is no safetensors file in {folder}")
    if len(found) > 1 and chosen == found:
        raise LoraInvalid(f"{folder} holds {', '.join(p.name for p in found[:5])}: name one with `weight_name`")
    return chosen[0]


def _read_bytes(path: Path) -> bytearray:
    try:
        data = bytearray(path.stat().st_size)
        with path.open("rb") as stream:
            if stream.readinto(data) != len(data):
                raise LoraInvalid(f"{path} changed while it was read")
    except OSError as error:
        raise LoraInvalid(f"{path} cannot be read: {error.strerror}") from error
    return data


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoraInvalid(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise LoraInvalid(f"{path} is not a JSON object")
    return config


def _from_bytes(data: bytearray, source: str, config: dict[str, Any] | None) -> LoraFile:
    header = read_header(data, source)
    tensors = {name: _tensor(data, entry) for name, entry in header.entries.items()}
    _check_finite(tensors, source)
    digest = hashlib.sha256(data)
    if config is not None:
        digest.update(json.dumps(config, sort_keys=True).encode())
    return LoraFile(source, tensors, header.metadata, config, digest.hexdigest())


def _tensor(data: bytearray, entry: Entry) -> Tensor:
    raw = torch.frombuffer(data, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
    # A header may have any length, so the values behind it need not lie on a multiple of their own size.
    return (raw if entry.begin % 8 == 0 else raw.clone()).view(_DTYPES[entry.dtype]).view(entry.shape)


def _from_tensors(tensors: Mapping[str, Tensor]) -> LoraFile:
    if not tensors:
        raise LoraInvalid("the LoRA holds no tensors")
    if not all(isinstance(key, str) for key in tensors):
        raise LoraInvalid("a LoRA given as a dict needs strings for keys")
    digest = hashlib.sha256()
    checked: dict[str, Tensor] = {}
    for key, tensor in sorted(tensors.items()):
        if not isinstance(tensor, Tensor) or tensor.dtype not in _DTYPES.values():
            raise LoraInvalid(f"{key} of the LoRA is no tensor of {', '.join(_DTYPES)}")
        if tensor.numel() == 0:
            raise LoraInvalid(f"{key} of the LoRA is empty")
        checked[key] = tensor.detach().to("cpu", copy=True).contiguous()
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(checked[key].flatten().view(torch.uint8).numpy().data)
    _check_finite(checked, "the LoRA")
    return LoraFile("the LoRA", checked, {}, None, digest.hexdigest())


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise LoraNonFinite(
            f"{source} has NaN or Inf in {len(bad)} tensors: {', '.join(bad[:5])}; train or export it again"
        )
