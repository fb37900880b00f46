"""Checks of a job before it is submitted: what its worker would say, said in minutes instead of at the job's turn.

Objects exist and may be read; the picture's header, size and orientation; the mask decoded, its size and how much of
the picture it covers; each LoRA's header against the model's published table; the output's place. A picture is
downloaded as a whole only with `deep`, or where it has no mask; a mask always. Objects that many rows share are looked
at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from farm import keys
from farm.distinct import Distinct
from farm.errors import FarmError, InputForbidden, InputNotFound, LoraNotFound, ObjectTooLarge, OutputExists
from farm.lora_targets import TargetTable
from farm.models import read_card
from farm.pictures import recognised
from farm.schemas import InpaintJob, LoraRef
from farm.storage import shown
from farm.weights import Header, read_header_by, refuse_pickle
from producer import inspection
from producer.client import Client
from producer.inspection import INVALID, Size, WeightsRef
from producer.manifest import Manifest, Row
from producer.parallel import mapped

_START_BYTES = 128 * 1024  # of a picture: its header, and EXIF with a thumbnail before it
_REMEMBERED = 4096  # objects; a catalogue's masks and LoRAs are few, its photos come once each
_THREADS = 16
_AHEAD = 64
LARGE_COVERAGE = 0.95


@dataclass(frozen=True)
class Finding:
    """What is wrong with a job (or, a warning, may not be meant)."""

    code: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Examined:
    """A row and what was found. `coverage`: the share of the picture that its mask lets change, where it is known."""

    row: Row
    findings: tuple[Finding, ...]
    coverage: float | None = None

    @property
    def good(self) -> bool:
        return not any(not finding.warning for finding in self.findings)


class Preflight:
    """Judges jobs as a client's tenant; with `deep` every file is read whole."""

    def __init__(self, client: Client, *, deep: bool = False):
        self._client, self._store, self._settings = client, client.store, client.settings
        self._deep = deep
        self._seen = _Remembered(_REMEMBERED)
        self._cards = _Remembered(64)

    def examine(self, manifest: Manifest) -> Iterator[Examined]:
        """Every row, in order, a few at a time. A custom_id that comes twice is told at its second row."""
        with closing(Distinct()) as names:
            rows = ((row, row.job is not None and not names.add(row.job.custom_id)) for row in manifest.rows())
            yield from mapped(lambda pair: self._row(*pair), rows, threads=_THREADS, ahead=_AHEAD)

    def _row(self, row: Row, twice: bool) -> Examined:
        if row.job is None:
            assert row.error is not None
            return Examined(row, (Finding(row.error.code, str(row.error)),))
        findings, coverage = self.check(row.job)
        if twice:
            again = Finding("InvalidParameter", f"custom_id: {row.job.custom_id!r} comes twice; name every row once")
            findings = (again, *findings)
        return Examined(row, findings, coverage)

    def check(self, job: InpaintJob) -> tuple[tuple[Finding, ...], float | None]:
        """What is wrong with one job, and its mask's coverage."""
        try:
            self._client.tenants.check_job(job)
        except FarmError as error:  # nothing more is asked of the store about places that may not be named
            return (Finding(error.code, str(error)),), None
        findings: list[Finding] = []
        coverage: float | None = None

        def attempt(check: Callable[[], Any]) -> Any:
            try:
                return check()
            except FarmError as error:
                findings.append(Finding(error.code, str(error)))
                return None

        size = attempt(lambda: self._picture(job))
        if size is not None:
            seen = attempt(lambda: self._mask(job, size))
            if seen is not None:
                coverage, warnings = seen
                findings += [Finding("Mask", warning, warning=True) for warning in warnings]
        for lora in job.loras:
            attempt(partial(self._lora, lora, job.model))
        for embedding in job.embeddings:
            attempt(partial(self._read, embedding))
        if job.ip_adapter is not None:
            attempt(partial(self._read, job.ip_adapter))
            attempt(partial(self._size, job.ip_adapter.image, "reference image"))
        if job.output is not None and job.if_exists == "fail":
            attempt(lambda: self._free(keys.output(self._settings.store, job, "", 0)))
        return tuple(findings), coverage

    # Pictures

    def _picture(self, job: InpaintJob) -> Size:
        return self._size(job.image, "image")

    def _size(self, uri: str, what: str) -> Size:
        found: Size = self._seen.get((what, uri), lambda: self._look(uri, what))
        return found

    def _look(self, uri: str, what: str) -> Size:
        info, limits = self._store.head(uri), self._settings
        if info.size > limits.max_image_bytes:
            raise ObjectTooLarge(f"{shown(uri)!r} has {info.size:,} bytes; {limits.max_image_bytes:,} are allowed.")
        if not self._deep and info.size > _START_BYTES:
            start = self._store.get_range(uri, 0, _START_BYTES, etag=info.etag)
            try:
                recognised(start)
            except FarmError as error:
                raise type(error)(f"{what}: {error}") from None
            size = inspection.size_at_start(start)
            if size is not None and size[0] * size[1] <= limits.max_image_pixels:
                return size
        data = self._bytes(uri)
        return inspection.size_of(data, what, limits.max_image_pixels)

    def _mask(self, job: InpaintJob, size: Size) -> tuple[float, tuple[str, ...]]:
        own = (job.mask or job.image, job.mask_polarity, job.mask is None, job.fill_holes)
        seen, coverage, warnings = self._seen.get(("edits", *own), lambda: self._edits(job, size))
        if job.mask is not None:
            inspection.check_size(seen, size)
        return coverage, warnings

    def _edits(self, job: InpaintJob, size: Size) -> tuple[Size, float, tuple[str, ...]]:
        """A mask is judged by itself, so that what is remembered of it holds for every picture."""
        most = self._settings.max_image_pixels
        if job.mask is None:
            drawn = inspection.decoded(self._bytes(job.image), "image", most)
            edits, warnings = inspection.edits_of(
                drawn, None, polarity=job.mask_polarity, max_pixels=most, fill_holes=job.fill_holes
            )
        else:
            data = self._bytes(job.mask)
            own = inspection.size_of(data, "mask", most)
            inspection.check_size(own, size)
            edits, warnings = inspection.edits_of(own, data, polarity=job.mask_polarity, max_pixels=most)
        coverage = edits.histogram()[255] / (edits.width * edits.height)
        if LARGE_COVERAGE < coverage < 1:
            warnings = (*warnings, f"The mask lets {coverage:.1%} of the picture change; is its polarity right?")
        return edits.size, coverage, warnings

    def _bytes(self, uri: str) -> bytes:
        return self._store.get(uri, max_bytes=self._settings.max_image_bytes).data

    # Weights

    def _lora(self, lora: LoraRef, model: str) -> None:
        self._seen.get(("lora", lora.path, lora.sha256, model), lambda: self._look_at_lora(lora, model))

    def _look_at_lora(self, lora: LoraRef, model: str) -> None:
        header = self._weights(lora)
        table: TargetTable | None = self._cards.get(model, lambda: self._table(model))
        try:
            if table is not None:
                table.judge(header)
        except FarmError as error:
            raise type(error)(f"{shown(lora.path)}: {error}") from None

    def _table(self, model: str) -> TargetTable | None:
        card = read_card(self._store, self._settings.store, model)
        return card.table() if card else None

    def _read(self, ref: WeightsRef) -> None:
        self._seen.get(("weights", ref.path, ref.sha256, type(ref)), lambda: self._weights(ref))

    def _weights(self, ref: WeightsRef) -> Header:
        if self._deep:
            return inspection.weights(self._store, ref, max_bytes=self._settings.max_lora_bytes)[1]
        path = ref.path
        refuse_pickle(path)
        try:
            info = self._store.head(path)
        except InputNotFound:
            raise LoraNotFound(f"There is no weights file at {path}; check the address.") from None
        if info.size > self._settings.max_lora_bytes:
            raise ObjectTooLarge(
                f"{shown(path)!r} has {info.size:,} bytes; {self._settings.max_lora_bytes:,} are allowed."
            )

        def read(offset: int, length: int) -> bytes:
            return self._store.get_range(path, offset, length, etag=info.etag)

        return read_header_by(info.size, read, invalid=INVALID[type(ref)])

    def _free(self, uri: str) -> None:
        try:
            self._store.head(uri)
        except (InputNotFound, InputForbidden):  # who may not list is told "forbidden" where there is nothing
            return
        raise OutputExists(f"{shown(uri)} is there already; choose another output, or another custom_id.")


class _Remembered:
    """What calls came to, the least recently asked forgotten; an error is remembered, too. Safe for many threads."""

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._held: OrderedDict[Any, tuple[Any, FarmError | None]] = OrderedDict()

    def get(self, key: Any, call: Callable[[], Any]) -> Any:
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
        if found is None:
            try:
                found = call(), None
            except FarmError as error:
                if error.retryable:
                    raise
                found = None, error
            with self._lock:
                self._held[key] = found
                if len(self._held) > self._most:
                    self._held.popitem(last=False)
        value, failure = found
        if failure is not None:
            raise failure
        return value
