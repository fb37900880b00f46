"""What is still to be sent: one small object for each webhook, in the store, noted before the job's or batch's end is
written and deleted when it was sent or given up.

So it is found again after any restart, and after Redis lost everything. The note holds no address and nothing that is
sent: both come from the spec and the result, so that who may write notes cannot say where to call or what.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import NamedTuple

from farm import keys
from farm.errors import InputNotFound, ObjectExists
from farm.ledger import JobRef
from farm.storage import ObjectStore

_MAX_BYTES = 4096


class Note(NamedTuple):
    """`ref` of a job, or None: then a batch. `at`: when it was noted, Unix seconds."""

    uri: str
    tenant: str
    batch_id: str
    ref: JobRef | None
    retries: int  # of the batch
    at: float


def note_job(store: ObjectStore, root: str, ref: JobRef) -> None:
    """To be called before the result is written: what is noted and has not ended waits. Raises StoreUnavailable."""
    uri = keys.webhook(root, ref.tenant, ref.batch_id, f"{ref.job_id}.{ref.generation}")
    _put(store, uri, {"ref": asdict(ref), "at": time.time()})


def note_batch(store: ObjectStore, root: str, tenant: str, batch: str, retries: int) -> None:
    """To be called before the batch is closed. Raises StoreUnavailable."""
    _put(store, keys.webhook(root, tenant, batch, f"batch.{retries}"), {"at": time.time()})


def _put(store: ObjectStore, uri: str, content: dict[str, object]) -> None:
    with suppress(ObjectExists):
        store.put(uri, json.dumps(content).encode(), content_type="application/json", create_only=True)


def noted(store: ObjectStore, root: str) -> Iterator[str]:
    """The addresses of all notes."""
    return (info.uri for info in store.list(keys.webhooks(root)))


def read(store: ObjectStore, root: str, uri: str) -> Note | None:
    """The note at `uri`; None if it was sent meanwhile. Raises ValueError for what is no note."""
    try:
        content = json.loads(store.get(uri, max_bytes=_MAX_BYTES).data)
    except InputNotFound:
        return None
    tenant, batch, name = uri.removeprefix(keys.webhooks(root)).split("/")
    kind, _, number = name.removesuffix(".json").partition(".")
    try:
        if kind == "batch":
            return Note(uri, tenant, batch, None, int(number), float(content["at"]))
        # what the note's name says counts, not what is in it
        ref = JobRef(
            **{**content["ref"], "tenant": tenant, "batch_id": batch, "job_id": kind, "generation": int(number)}
        )
        return Note(uri, tenant, batch, ref, 0, float(content["at"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{uri} is no note of a webhook") from error


def done(store: ObjectStore, note: Note) -> None:
    store.delete(note.uri)
