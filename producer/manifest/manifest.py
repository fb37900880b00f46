"""`Manifest`: the jobs of a file, read anew from the start each time it is gone through, one row at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from farm.config import Settings, load_settings
from farm.errors import FarmError
from farm.schemas import InpaintJob
from farm.storage import ObjectStore
from producer.manifest.jobs import job_of
from producer.manifest.rows import kind_of, rows_of
from producer.manifest.source import Source


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its job, or why it is none. `number` counts rows from 0; `place` is where a person finds it."""

    number: int
    place: str
    job: InpaintJob | None
    error: FarmError | None = None


class Manifest:
    """A manifest in JSONL, CSV or Parquet at a path, `file:///…` or `s3://…`.

    `fields` are set on every job, over what its row says; `kind` is "jsonl", "csv" or "parquet" where the file's name
    does not tell it. Rows may use the names of other tools (`producer.manifest.dialects`) and addresses relative to
    the manifest. A job without custom_id is named after its row's number.
    """

    def __init__(
        self, where: str | Path, *, fields: Mapping[str, Any] | None = None, kind: str | None = None,
        settings: Settings | None = None, store: ObjectStore | None = None,
    ):  # fmt: skip
        self.fields = dict(fields or {})
        self._settings, self._store = settings, store
        self._source = Source(where, self._store_of)
        self._kind = kind_of(self._source.name, kind)

    @property
    def uri(self) -> str:
        return self._source.uri

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self._source.name.rsplit(".", 1)[0]

    def __repr__(self) -> str:
        return f"Manifest({self.uri!r})"

    def __iter__(self) -> Iterator[InpaintJob]:
        return self.jobs()

    def jobs(self, start: int = 0, stop: int | None = None) -> Iterator[InpaintJob]:
        """The jobs of rows `start` to `stop` (excluded). Raises the first row's error, with its place."""
        for row in self.rows(start, stop):
            if row.error is not None:
                raise row.error
            assert row.job is not None
            yield row.job

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Good rows and bad ones. Raises InputNotFound and its like, or InvalidParameter, for a file that is none."""
        with self._source.open() as file:
            rows = enumerate(rows_of(file, self._kind))
            for number, (place, row) in islice(rows, start, stop):
                yield self._row(number, place, row)

    def fingerprint(self) -> str:
        """32 hex digits of the file's bytes, its place (relative addresses hang on it) and `fields`."""
        content = json.dumps([self._source.sha256(), self._source.folder, self.fields], sort_keys=True, default=str)
        return sha256(content.encode()).hexdigest()[:32]

    def _row(self, number: int, place: str, row: dict[str, Any] | FarmError) -> Row:
        try:
            if isinstance(row, FarmError):
                raise row
            job = job_of(row, folder=self._source.folder, fields=self.fields, name=f"{number:08d}")
        except FarmError as error:
            error.args = (f"{place}: {error}",)
            return Row(number, place, None, error)
        return Row(number, place, job)

    def _store_of(self, uri: str) -> ObjectStore:
        """The store of an s3:// manifest: the farm's, unless that is a local one."""
        settings = self._settings or load_settings()
        if settings.store.startswith("s3://"):
            return self._store or settings.open_store()
        return settings.model_copy(update={"store": "/".join(uri.split("/")[:3])}).open_store()
