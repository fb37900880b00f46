"""The object-store port and its two stores: S3, and a local folder."""

from __future__ import annotations

from pathlib import Path

from farm.errors import UrlNotAllowed
from farm.storage.base import (
    ObjectInfo,
    ObjectStore,
    Progress,
    S3Settings,
    StoredObject,
    create_once_honoured,
    join,
    require_create_once,
    shown,
)

__all__ = [
    "RECORDS",
    "ObjectInfo",
    "ObjectStore",
    "Progress",
    "S3Settings",
    "StoredObject",
    "create_once_honoured",
    "join",
    "open_store",
    "require_create_once",
    "shown",
]

RECORDS = ("specs", "results", "summaries", "states", "dead", "webhooks", "outputs", "models")
"""The folders below a farm's store that the farm itself writes (`farm.keys` says what lies in them)."""


def open_store(url: str, *, s3: S3Settings | None = None, extra_roots: tuple[str | Path, ...] = ()) -> ObjectStore:
    """The store that `url` lies in: `s3://bucket/prefix` or `file:///folder`.

    A local store is confined to that folder (made if missing) and to `extra_roots` (which must exist). An S3 store
    may name any bucket its credentials reach.
    """
    if url.startswith("s3://"):
        from farm.storage.s3 import S3Store  # boto3 takes 0.2 s and 20 MB to import: only for who needs it

        return S3Store(s3 or S3Settings(), records=tuple(f"{url.rstrip('/')}/{name}/" for name in RECORDS))
    if url.startswith("file:///"):
        from farm.storage.local import LocalStore

        return LocalStore(url.removeprefix("file://"), *extra_roots)
    raise UrlNotAllowed(f"{shown(url)!r} is not a store; use s3://bucket/prefix or file:///absolute/folder.")
