"""Pickled weights to safetensors, opened in a process of its own: `convert(source, target)`.

The child (`python -m worker.engine.convert`) runs with an environment that holds no secrets and unpickles with
`weights_only=True`, which builds tensors and plain containers and calls nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from worker.engine.config import load_json, save_json
from worker.engine.errors import CheckpointInvalid, EngineError, InvalidParameter, UnsafeWeightsFormat
from worker.engine.weights_file import is_pickle

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Converted:
    """What was written: `files` converted, `tensors` in them all."""

    target: Path
    files: int
    tensors: int


def convert(source: str | Path, target: str | Path, timeout_s: float = 3600.0) -> Converted:
    """Turn a checkpoint, LoRA or embedding (`.ckpt`, `.bin`, `.pt`) into the safetensors file `target`.

    A folder in the layout of diffusers is copied to the folder `target`, its pickles converted and renamed.
    Raises `InvalidParameter` if `target` exists, `UnsafeWeightsFormat` for a pickle that needs code to be opened,
    `CheckpointInvalid` for what holds no tensors or cannot be read.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise CheckpointInvalid(f"{source} is missing")
    if target.exists():
        raise InvalidParameter("target", f"{target} exists already; name a new one, nothing is overwritten")
    command = [sys.executable, "-m", "worker.engine.convert", str(source.resolve()), str(target.resolve())]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        child = subprocess.run(
            command,
            env={**environment, "PYTHONPATH": str(_PACKAGE_ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointInvalid(f"{source} was not converted within {timeout_s:.0f} s") from None
    try:
        answer = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointInvalid(
            f"{source} was not converted: the converter ended with {child.returncode} ({last})"
        ) from None
    if "error" in answer:
        kinds: dict[str, type[EngineError]] = {UnsafeWeightsFormat.code: UnsafeWeightsFormat}
        raise kinds.get(answer["error"], CheckpointInvalid)(answer["message"])
    return Converted(target, answer["files"], answer["tensors"])


# ---- what runs in the child ----


def _main(source: Path, target: Path) -> int:
    # written beside the target and moved at the end, so that no half of a result is ever seen
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as workplace:
        draft = Path(workplace) / target.name
        try:
            counts = _convert_folder(source, draft) if source.is_dir() else [_convert_file(source, draft)]
            draft.rename(target)
        except EngineError as error:
            answer: dict[str, Any] = {"error": error.code, "message": str(error)}
        else:
            answer = {"files": len(counts), "tensors": sum(counts)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


def _convert_folder(source: Path, target: Path) -> list[int]:
    """Copy a folder; each pickled weights file becomes a safetensors one unless that is there already."""
    counts = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".bin.index.json"):
            _convert_index(path, copy.with_name(_safe_name(path.name)))
        elif path.suffix not in _PICKLE_SUFFIXES or not is_pickle(path):
            shutil.copyfile(path, copy)
        elif not path.with_name(_safe_name(path.name)).exists():
            counts.append(_convert_file(path, copy.with_name(_safe_name(path.name))))
    if not counts:
        raise CheckpointInvalid(f"{source} holds no pickled weights: there is nothing to convert")
    return counts


def _safe_name(name: str) -> str:
    """`pytorch_model.fp16.bin` → `model.fp16.safetensors`: the name transformers and diffusers look for."""
    stem = "model" + name.removeprefix("pytorch_model") if name.startswith("pytorch_model") else name
    for suffix in _PICKLE_SUFFIXES:
        stem = stem.replace(f"{suffix}.index", ".safetensors.index")
        if stem.endswith(suffix):
            return stem.removesuffix(suffix) + ".safetensors"
    return stem


def _convert_index(source: Path, target: Path) -> None:
    index = load_json(source)
    shards = {name: _safe_name(shard) for name, shard in index.get("weight_map", {}).items()}
    save_json(target, {**index, "weight_map": shards})


def _convert_file(source: Path, target: Path) -> int:
    """Write the tensors of a pickle as safetensors and say how many; strings beside them go into the metadata."""
    if not is_pickle(source):
        raise CheckpointInvalid(
            f"{source} is not a pickle; only .ckpt, .bin or .pt files of torch.save need converting"
        )
    content = _unpickle(source)
    if not isinstance(content, Mapping):
        raise CheckpointInvalid(f"{source} holds a {type(content).__name__}, not tensors by name")
    content = content.get("state_dict", content)
    # copies: tensors that share memory cannot be written, nor views with holes
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in _tensors("", content)}
    if not tensors:
        raise CheckpointInvalid(f"{source} holds no tensors: is it a checkpoint, a LoRA or an embedding?")
    words = {str(k): v for k, v in content.items() if isinstance(v, str)}
    save_file(tensors, target, metadata={"format": "pt", **words})
    return len(tensors)


def _unpickle(source: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_stand_ins(source)):
            return torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise UnsafeWeightsFormat(
            f"{source} does not load without running code from it, so it was not opened ({reason[:200]}). "
            "Take another copy, one in safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointInvalid(f"{source} cannot be read as a file of torch.save: {error}") from error


def _stand_ins(source: Path) -> list[tuple[type, str]]:
    """Empty classes in place of PyTorch Lightning's, which original checkpoints name beside their weights.

    Lightning keys its notes by class; a class that does nothing serves as a key just as well.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(source)
    except (RuntimeError, ValueError, UnpicklingError):  # the format before 1.6 cannot be asked
        named = []
    return [(type("Nothing", (), {}), name) for name in named if name.startswith("pytorch_lightning.")]


def _tensors(prefix: str, content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its path, keys joined by dots: A1111's embeddings nest theirs as `string_to_param.*`."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(f"{prefix}.{key}" if prefix else str(key), value)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
