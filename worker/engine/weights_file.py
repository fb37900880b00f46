"""Weights on disk: one safetensors file, or several behind an index; judged by their first bytes, never by name.

https://github.com/huggingface/safetensors#format: eight bytes N, little endian, then N bytes of JSON.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from worker.engine.config import load_json
from worker.engine.errors import CheckpointInvalid, UnsafeWeightsFormat
from worker.engine.lora.header import refuse_pickle

_ZIP = b"PK\x03\x04"  # what torch.save writes today
_PICKLE = re.compile(rb"\x80[\x02-\x05].", re.DOTALL)  # what it wrote before 1.6
_CONVERT = "Convert it once with `farm-worker convert {} OUTPUT`, which opens it in a process of its own."


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle or the zip archive that torch.save makes of one, under whatever name."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    # A header of 640 bytes begins as a pickle does: what has a header where safetensors has one is no pickle.
    if head[8:9] == b"{" and length <= path.stat().st_size - 8:
        return False
    return head.startswith(_ZIP) or _PICKLE.match(head) is not None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, mapped privately into memory on the CPU.

    Raises `UnsafeWeightsFormat` for a pickle, `CheckpointInvalid` for a file that is absent or not safetensors.
    """
    if not path.is_file():
        raise CheckpointInvalid(f"{path} is missing")
    if is_pickle(path):
        raise UnsafeWeightsFormat(
            f"{path} is a pickle, which runs code when it is opened, whatever its name says. {_CONVERT.format(path)}"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointInvalid(f"{path} is not a sound safetensors file: {error}") from error


def parse_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a file's bytes; `where` is what messages call it. Raises as `read_safetensors` does."""
    if data[8:9] != b"{":
        refuse_pickle(data, where)
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise CheckpointInvalid(f"{where} is not a sound safetensors file: {error}") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are in memory, but contiguous and on the CPU."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def find_weights(folder: Path, stem: str, variant: str | None = None) -> Path:
    """The weights of a component's folder: `stem.safetensors`, or the index of several files.

    With a `variant` the files of that name are wanted, as in `model.fp16.safetensors`. Raises `UnsafeWeightsFormat`
    if there is nothing but pickles, `CheckpointInvalid` naming what was looked for otherwise.
    """
    middle = f".{variant}" if variant else ""
    wanted = [
        f"{stem}{middle}.safetensors",
        f"{stem}.safetensors.index{middle}.json",
        f"{stem}{middle}.safetensors.index.json",
    ]
    for name in wanted:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix != ".json")
    if not any(path.suffix == ".safetensors" for path in others):
        for path in others:
            if is_pickle(path):
                raise UnsafeWeightsFormat(
                    f"{folder} holds no safetensors but {path.name}, a pickle, which runs code when it is opened. "
                    + _CONVERT.format(folder)
                )
    there = ", ".join(path.name for path in others[:5]) or "no weights at all"
    raise CheckpointInvalid(
        f"{folder / wanted[0]} is missing (nor is there an index of shards); the folder holds {there}"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of all files that an index names.

    Raises as `read_safetensors` does, and `CheckpointInvalid` where index and shards disagree.
    """
    if path.suffix != ".json":
        return read_safetensors(path)
    where = load_json(path).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointInvalid(f"{path} has no `weight_map` from tensors to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard:
            raise CheckpointInvalid(f"{path} names {shard!r}, which is not a file beside it")
        tensors |= read_safetensors(path.parent / shard)
    if wrong := sorted(tensors.keys() ^ where.keys()):
        raise CheckpointInvalid(
            f"{path} and its shards disagree about {len(wrong)} tensors ({', '.join(wrong[:5])}); copy them again"
        )
    return tensors
