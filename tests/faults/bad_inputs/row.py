"""A row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.bad_inputs.bench import Bench

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One bad input. `make` lays it out in the bench's store and gives the fields of the job that brings it about, or
    the bytes of a spec as somebody without our client would store it.

    `code` is the error the job must end with; "" means that the job succeeds, with `warning` in its result or `logged`
    in the worker's log where the row says so. What the client can know it must refuse with the same code (`early`).
    """

    what: str
    code: str
    make: Callable[[Bench], Fields | bytes]
    early: bool = False
    bench: str = "painter"  # or: model, a real one; buckets, on S3 with two tenants
    warning: str = ""
    logged: str = ""


class Line(bytes):
    """A spec's line that is stored as it is, signature and all."""


@dataclass(frozen=True)
class Act:
    """Something that the client alone can know to be wrong: `do` must raise `code`, and nothing is accepted."""

    what: str
    code: str
    do: Callable[[Bench], object]


@dataclass(frozen=True)
class Message:
    """One bad message in the Celery queue, as `put` writes it there (client, queue's name). The next job runs."""

    what: str
    put: Callable[[Any, str], None]
