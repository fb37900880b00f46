"""The tensors inside whatever a reader made of a file: found, and exchanged for others. Works without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Place = Callable[[Any], Any]
"""Gives the same weights with their tensors on another device."""


def tensors_in(value: Any) -> Iterator[Any]:
    """Every tensor in dataclasses, mappings and sequences, one that occurs twice twice."""
    if hasattr(value, "data_ptr"):
        yield value
    else:
        for part in _parts(value):
            yield from tensors_in(part)


def exchanged(value: Any, by_id: Mapping[int, Any]) -> Any:
    """The same value with each tensor replaced by the one under its `id`."""
    if hasattr(value, "data_ptr"):
        return by_id[id(value)]
    if not any(True for _ in tensors_in(value)):
        return value
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: exchanged(part, by_id) for name, part in fields.items()})
    if isinstance(value, Mapping):
        return {key: exchanged(part, by_id) for key, part in value.items()}
    return type(value)(exchanged(part, by_id) for part in value)


def nbytes(value: Any) -> int:
    """Bytes of all tensors in `value`, one that occurs twice counted once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors_in(value)}.values())


def _parts(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, f.name) for f in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        yield from value
