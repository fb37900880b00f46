"""The head of a safetensors file, read and judged before a byte of its tensors is trusted.

The format (https://github.com/huggingface/safetensors#format): eight bytes N, little endian; N bytes of JSON that maps
each tensor's name to `dtype`, `shape` and `data_offsets`; then the tensors' bytes, without hole or overlap. What that
document demands, and what a farm must demand on top of it of a file that a stranger made, is checked here.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.errors import LoraInvalid, UnsafeWeightsFormat

MAX_HEADER_BYTES = 8 << 20
MAX_METADATA_BYTES = 4 << 20
MAX_AXES = 8

# Bytes an element takes. The integers are there for `alpha`, which some trainers write as one.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_PICKLE = re.compile(rb"\x80[\x02-\x05].", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: `begin` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(data: bytes | bytearray, source: str) -> Header:
    """Check the whole of `data`, a safetensors file, but for the values of its tensors.

    Raises `UnsafeWeightsFormat` for a pickle or a torch archive under whatever name, `LoraInvalid` with the reason for
    anything else that is not one well-formed file with at least one tensor.
    """
    head = _json_head(data, source)
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _invalid(source, "its __metadata__ is not a map of strings to strings")
    if sum(len(k) + len(v) for k, v in metadata.items()) > MAX_METADATA_BYTES:
        raise _invalid(source, f"its __metadata__ takes more than {MAX_METADATA_BYTES >> 20} MiB")
    if not head:
        raise _invalid(source, "it holds no tensors")
    start = len(data) - _data_bytes(data)
    entries = {name: _entry(name, fields, start, source) for name, fields in head.items()}
    _check_layout(entries, start, len(data), source)
    return Header(entries, metadata)


def refuse_pickle(data: bytes | bytearray, source: str) -> None:
    """Raise `UnsafeWeightsFormat` if `data` starts as a pickle or as the zip archive that torch.save writes."""
    if data[:4] == b"PK\x03\x04" or _PICKLE.match(bytes(data[:3])):
        raise UnsafeWeightsFormat(
            f"{source} is a pickle (a torch.save file), which runs code when it is opened; "
            "convert it to safetensors with `farm-worker convert`"
        )


def _json_head(data: bytes | bytearray, source: str) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    # A length of 640 starts with the same two bytes as a pickle; a pickle's own bytes make a length no file has.
    if len(data) < 9 or length > len(data) - 8:
        refuse_pickle(data, source)
    if len(data) < 10:
        raise _invalid(source, f"it has {len(data)} bytes, too few for a header")
    if length > len(data) - 8:
        raise _invalid(source, f"its header claims {length} bytes and the file has {len(data) - 8} after the length")
    if length > MAX_HEADER_BYTES:
        raise _invalid(source, f"its header takes {length} bytes, more than {MAX_HEADER_BYTES >> 20} MiB")
    try:
        head = json.loads(bytes(data[8 : 8 + length]).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _invalid(source, f"its header is no valid JSON: {error}") from error
    if not isinstance(head, dict):
        raise _invalid(source, "its header is not a JSON object")
    return head


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} stands in it twice")
    return found


def _data_bytes(data: bytes | bytearray) -> int:
    return len(data) - 8 - int.from_bytes(data[:8], "little")


def _entry(name: str, fields: Any, start: int, source: str) -> Entry:
    if len(name) > 512 or not _NAME.fullmatch(name):
        raise _invalid(source, f"{name[:80]!r} is no name of a tensor (letters, digits, '_', '-', single dots)")
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise _invalid(source, f"{name} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _invalid(source, f"{name} has the dtype {dtype!r}; supported are {', '.join(ITEM_BYTES)}")
    if not _counts(shape, 0, MAX_AXES) or math.prod(shape) == 0:
        raise _invalid(source, f"{name} has a shape that is not a list of up to {MAX_AXES} positive integers")
    if not _counts(offsets, 2, 2):
        raise _invalid(source, f"{name} has data_offsets that are not two offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _invalid(source, f"{name}: {dtype} of shape {shape} does not take {end - begin} bytes")
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _counts(value: Any, least: int, most: int) -> bool:
    if not isinstance(value, list) or not least <= len(value) <= most:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(entries: Mapping[str, Entry], start: int, size: int, source: str) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            raise _invalid(
                source, f"{name} {'overlaps' if entry.begin < position else 'leaves a hole after'} its neighbour"
            )
        position = entry.end
    if position > size:
        raise _invalid(source, f"it is cut off: {position - size} bytes are missing")
    if position < size:
        raise _invalid(source, f"{size - position} bytes trail after the last tensor")


def _invalid(source: str, reason: str) -> LoraInvalid:
    return LoraInvalid(f"{source} is no valid safetensors file: {reason}")
