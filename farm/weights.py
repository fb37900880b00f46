"""Safetensors files read and judged without torch, so that a client refuses what a worker would refuse.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length, a JSON header that gives each
tensor's dtype, shape and place, then the tensors' bytes. The header is the untrusted part. It is read here with no
allocation that its sender chooses, and refused unless the tensors fill the file exactly, one after the other; the
safetensors library alone lets through duplicate names, files without tensors, and names that look like paths.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from farm.errors import InvalidInput, LoraInvalid, LoraNonFinite, UnsafeWeightsFormat
from farm.storage.base import shown

MAX_HEADER_BYTES = 16 * 1024**2
MAX_METADATA_BYTES = 2 * 1024**2  # trainers note their data set's tags there: some hundred kB in the largest
MAX_TENSORS = 20_000  # the largest LoRAs of any family have some 5,000
MAX_DIMENSIONS = 8

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes an element, for each dtype that is read."""

_PICKLE_NAMES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_PICKLE_MAGIC = re.compile(rb"\x80[\x00-\x05]|PK[\x03\x05\x07]")  # a bare pickle, or torch's ZIP of pickles
_NAME = re.compile(r"(?!/)(?!.*\.\.)[^\\]{1,512}")  # an embedding's names are words: "<brand>"


class Tensor(NamedTuple):
    """One tensor's place: bytes `start` to `end` (excluded) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file holds. The tensors' bytes begin `offset` bytes into it and fill the rest without gap or overlap."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    offset: int


def refuse_pickle(name: str) -> None:
    """Raises UnsafeWeightsFormat for a file name or URI that promises a pickle."""
    if name.lower().endswith(_PICKLE_NAMES):
        _unsafe(f"{shown(name)!r} is a pickle by its name")


def read_header(source: bytes | memoryview | Path, *, invalid: type[InvalidInput] = LoraInvalid) -> Header:
    """The header of a safetensors file, given as its bytes or its path.

    Raises UnsafeWeightsFormat for a pickle under whatever name, and `invalid` (LoraInvalid, unless the file is to be
    something else) with the reason for everything that is wrong.
    """
    try:
        return _read(source)
    except _Refused as refused:
        raise invalid(f"The weights are not usable safetensors: {refused}; export the file again.") from None


def read_header_by(
    size: int, read: Callable[[int, int], bytes], *, invalid: type[InvalidInput] = LoraInvalid
) -> Header:
    """`read_header` of a file of `size` bytes that is not here: `read(offset, length)` gets what is needed of it."""
    try:
        length = _header_length(read(0, min(9, size)) if size else b"", size)
        tensors, metadata = _parsed(read(8, length))
        _check_layout(tensors, size - 8 - length)
    except _Refused as refused:
        raise invalid(f"The weights are not usable safetensors: {refused}; export the file again.") from None
    return Header(tensors, metadata, 8 + length)


def refuse_non_finite(data: bytes | memoryview, header: Header, *, invalid: type[InvalidInput] = LoraNonFinite) -> None:
    """Raises `invalid` naming the first tensor that holds NaN or Inf. One pass in slices of 1 MB, 0.3 to 1 GB/s.

    A number is not finite when its exponent's bits are all 1, and those lie in its one or two highest bytes; so the
    bytes of all numbers at that place are searched at once. That needs no array library on the client.
    """
    view = memoryview(data)[header.offset :]
    for name, tensor in header.tensors.items():
        if tensor.dtype in _NOT_FINITE and _holds_non_finite(view[tensor.start : tensor.end], tensor.dtype):
            raise invalid(f"The weights of {name!r} hold NaN or Inf; train or export the file again.")


# The header


class _Refused(Exception):
    """Carries the reason up to where it is known what the file should have been."""


def _unsafe(what: str) -> NoReturn:
    raise UnsafeWeightsFormat(f"{what}, and a pickle can run code when it is opened; convert it to safetensors.")


def _read(source: bytes | memoryview | Path) -> Header:
    if isinstance(source, Path):
        with source.open("rb") as file:
            size, start = source.stat().st_size, file.read(9)
            length = _header_length(start, size)
            file.seek(8)
            text = file.read(length)
    else:
        size = len(source)
        length = _header_length(bytes(source[:9]), size)
        text = bytes(source[8 : 8 + length])
    tensors, metadata = _parsed(text)
    _check_layout(tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _header_length(start: bytes, size: int) -> int:
    length = int.from_bytes(start[:8], "little")
    # The two first bytes of a pickle are also those of a possible length: the brace behind the length decides.
    if (length > MAX_HEADER_BYTES or start[8:] != b"{") and _PICKLE_MAGIC.match(start):
        _unsafe("The weights are a pickle")
    if size < 8 + 2:
        raise _Refused(f"the file has only {size} bytes")
    if length > MAX_HEADER_BYTES:
        raise _Refused(f"the header claims {length:,} bytes, {MAX_HEADER_BYTES:,} are allowed")
    if 8 + length > size:
        raise _Refused(f"the file has {size:,} bytes and ends inside its header of {length:,}")
    if start[8:] != b"{":
        raise _Refused("the header is not a JSON object")
    return length


def _parsed(text: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    if text.count(b'"data_offsets"') > MAX_TENSORS:  # before anything is made of them
        raise _Refused(f"it has more than {MAX_TENSORS:,} tensors")
    try:
        header = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _Refused("the header is not valid JSON") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("its metadata is not a table of strings")
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_BYTES:
        raise _Refused(f"its metadata exceeds {MAX_METADATA_BYTES:,} characters")
    if not header:
        raise _Refused("it has no tensors")
    if len(header) > MAX_TENSORS:
        raise _Refused(f"it has more than {MAX_TENSORS:,} tensors")
    return {_name(name): _tensor(name, entry) for name, entry in header.items()}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Refused("a name occurs twice in the header")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _name(name: str) -> str:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise _Refused(
            f"the tensor name {shown(name)!r} is none: it is empty or too long, or holds what a path may not"
        )
    return name


def _tensor(name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Refused(f"the entry of {name!r} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise _Refused(f"{name!r} has the dtype {shown(str(dtype))!r}, which is none of {', '.join(BYTES)}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Refused(f"{name!r} has no sensible shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Refused(f"{name!r} has no sensible data_offsets")
    if math.prod(shape) * BYTES[dtype] != offsets[1] - offsets[0]:  # Python's integers do not overflow
        raise _Refused(f"the shape of {name!r} does not match its {offsets[1] - offsets[0]:,} bytes")
    return Tensor(dtype, tuple(shape), *offsets)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(tensors: Mapping[str, Tensor], size: int) -> None:
    """The tensors must tile the `size` bytes after the header."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start < end:
            raise _Refused(f"the bytes of {name!r} overlap another tensor's")
        if tensor.start > end:
            raise _Refused(f"there is a hole of {tensor.start - end:,} bytes before {name!r}")
        end = tensor.end
    if end > size:
        raise _Refused(f"the file is cut short: {end - size:,} bytes of its tensors are missing")
    if end < size:
        raise _Refused(f"{size - end:,} bytes follow the last tensor")


# NaN and Inf

# dtype → the bits that are all 1 in a number that is not finite: of its highest byte, and of the byte below.
# (F8_E4M3 has a NaN and no Inf.)
_NOT_FINITE = {
    "F8_E4M3": (0x7F, 0),
    "F8_E5M2": (0x7C, 0),
    "F16": (0x7C, 0),
    "BF16": (0x7F, 0x80),
    "F32": (0x7F, 0x80),
    "F64": (0x7F, 0xF0),
}
_SLICE = 1 << 20


@cache
def _full(mask: int) -> bytes:
    """A table for `bytes.translate`: 1 for the bytes with all bits of `mask`, 0 for the others."""
    return bytes(byte & mask == mask for byte in range(256))


def _holds_non_finite(view: memoryview, dtype: str) -> bool:
    high, below = _NOT_FINITE[dtype]
    width = BYTES[dtype]
    for start in range(0, len(view), _SLICE):
        part = bytes(view[start : start + _SLICE])
        suspects = part[width - 1 :: width].translate(_full(high))
        if 1 not in suspects:
            continue
        if not below:
            return True
        confirmed = part[width - 2 :: width].translate(_full(below))
        if int.from_bytes(suspects, "little") & int.from_bytes(confirmed, "little"):  # all numbers in one operation
            return True
    return False
