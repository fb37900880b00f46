"""The rows of a manifest, whatever its format: (where it stands, the row as a dict or why it is none), as a stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from farm.errors import FarmError, InvalidParameter, Misconfigured, SpecTooLarge
from farm.schemas import MAX_SPEC_BYTES

RawRow = tuple[str, dict[str, Any] | FarmError]
_PARQUET_ROWS = 1000  # decoded at once

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def rows_of(file: BinaryIO, kind: str) -> Iterator[RawRow]:
    """Raises Misconfigured where Parquet is not installed, InvalidParameter for a file that is not of its kind."""
    return READERS[kind](file)


def kind_of(name: str, kind: str | None = None) -> str:
    """`kind`, or what the file's name says. Raises InvalidParameter when that is not known."""
    found = kind or next((kind for ending, kind in ENDINGS.items() if name.lower().endswith(ending)), None)
    if found not in READERS:
        raise InvalidParameter("manifest", f"{name!r} is none of {', '.join(ENDINGS)}; rename it, or convert it to one")
    return found


def _jsonl(file: BinaryIO) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(MAX_SPEC_BYTES + 2):
        number += 1
        place = f"line {number}"
        if len(line) > MAX_SPEC_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_SPEC_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield place, SpecTooLarge(f"The row is longer than {MAX_SPEC_BYTES} bytes; shorten it.")
        elif line.strip():
            yield place, _object(line)


def _object(line: bytes) -> dict[str, Any] | FarmError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InvalidParameter("row", f"is not valid JSON: {str(error)[:120]}")
    return row if isinstance(row, dict) else InvalidParameter("row", "is not a JSON object")


def _csv(file: BinaryIO) -> Iterator[RawRow]:
    """Columns are fields; an empty cell is an absent field, `metadata.x` a member, a cell like `[…]` or `{…}` JSON."""
    reader = csv.reader(_decoded(file), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise InvalidParameter("manifest", "two of its columns have one name; name every column once")
        for cells in reader:
            place = f"line {reader.line_num}"
            if not any(cells):
                continue
            if len(cells) > len(header):
                yield place, InvalidParameter("row", f"has {len(cells)} cells, and there are {len(header)} columns")
                continue
            yield place, _nested(dict(zip(header, cells, strict=False)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidParameter("manifest", f"is not CSV in UTF-8 after line {reader.line_num}: {error}") from None


def _decoded(file: BinaryIO) -> Iterator[str]:
    encoding = "utf-8-sig"  # spreadsheets begin a file with a mark
    while line := file.readline(MAX_SPEC_BYTES):
        yield line.decode(encoding)
        encoding = "utf-8"


def _nested(cells: dict[str, str]) -> dict[str, Any] | FarmError:
    row: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell == "":
            continue
        value: Any = cell
        if cell[0] in "[{" and name not in ("prompt", "negative_prompt"):
            try:
                value = json.loads(cell)
            except (ValueError, RecursionError) as error:
                return InvalidParameter(name, f"looks like JSON and is not: {str(error)[:120]}")
        group, dot, member = name.partition(".")
        if not dot:
            row[name] = value
            continue
        members = row.setdefault(group, {})
        if not isinstance(members, dict):
            return InvalidParameter(name, f"stands beside a column {group}; keep one of them")
        members[member] = cell
    return row


def _parquet(file: BinaryIO) -> Iterator[RawRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Misconfigured(
            "Parquet needs pyarrow: `pip install inpaint-farm[parquet]`, or convert the manifest to JSONL."
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(file, pre_buffer=False).iter_batches(_PARQUET_ROWS, use_threads=False):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield f"row {number}", _without_nulls(row)
    except pyarrow.ArrowException as error:
        raise InvalidParameter(
            "manifest", f"cannot be read as Parquet after row {number}: {str(error)[:160]}"
        ) from None


def _without_nulls(value: Any) -> Any:
    """Parquet knows no absent field: a null is one, also inside of structs."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in value]
    return value


READERS: dict[str, Callable[[BinaryIO], Iterator[RawRow]]] = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
