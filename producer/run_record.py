"""What a run keeps beside its results, so that another process can go on with it: `run.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from farm.errors import InputNotFound, Misconfigured

VERSION = 1
NAME = "run.json"


@dataclass(frozen=True)
class Part:
    """Rows `first` to `stop` (excluded; None: to the end) of the manifest, one batch."""

    first: int
    stop: int | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run of one manifest. Its batches follow from `key` and their first rows, so that none is submitted twice.

    `parts` are the rows that were let through: a sample, then the rest; `webhook` is called at the end of each.
    `rewrite`: the results in the folder are older than a retry and are being written again.
    """

    manifest: str
    fingerprint: str
    tenant: str
    key: str
    parts: tuple[Part, ...]
    sample: int = 0
    webhook: str | None = None
    rewrite: bool = False
    version: int = VERSION

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises InputNotFound if no run was begun there, Misconfigured for a record that this release cannot read."""
        try:
            fields = json.loads((folder / NAME).read_bytes())
            parts = tuple(Part(**part) for part in fields.pop("parts"))
            record = cls(**fields, parts=parts)
        except FileNotFoundError:
            raise InputNotFound(f"No run was begun in {folder}; start it without --resume.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise Misconfigured(f"{folder / NAME} is no record of a run ({type(error).__name__}).") from None
        if record.version != VERSION:
            raise Misconfigured(f"{folder / NAME} is of version {record.version}; this release reads {VERSION}.")
        return record

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        draft = folder / f"{NAME}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(folder / NAME)
