"""`MemoryStore`: an object store that is a dict."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import ClassVar

from farm.errors import InputChanged, InputNotFound, ObjectExists, ObjectTooLarge
from farm.storage import ObjectInfo, ObjectStore, Progress, StoredObject, shown
from farm.storage.base import check_range, checked_metadata, split

_STEP = 1 << 20  # bytes that are reported at once


class MemoryStore(ObjectStore):
    """Objects `s3://bucket/key` of any bucket, gone with the process."""

    scheme: ClassVar[str] = "s3"

    def __init__(self) -> None:
        self._objects: dict[str, StoredObject] = {}
        self._lock, self._versions = threading.Lock(), count(1)

    def get(
        self, uri: str, *, max_bytes: int, etag: str | None = None, progress: Progress | None = None
    ) -> StoredObject:
        found = self._found(uri, etag)
        if found.size > max_bytes:
            raise ObjectTooLarge(f"{shown(uri)!r} has {found.size:,} bytes; {max_bytes:,} are allowed.")
        _report(progress, found.size)
        return found

    def get_range(self, uri: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        check_range(offset, length)
        data = self._found(uri, etag).data[offset : offset + length]
        if len(data) != length:
            raise InputChanged(f"{shown(uri)!r} ends inside the range that was asked for.")
        return data

    def head(self, uri: str) -> ObjectInfo:
        found = self._found(uri, None)
        return ObjectInfo(found.uri, found.size, found.etag, found.content_type, found.metadata)

    def put(
        self, uri: str, data: bytes, *, content_type: str, metadata: Mapping[str, str] | None = None,
        create_only: bool, progress: Progress | None = None,
    ) -> ObjectInfo:  # fmt: skip
        split(uri, self.scheme)
        kept = checked_metadata(metadata)
        with self._lock:
            if create_only and uri in self._objects:
                raise ObjectExists(f"{shown(uri)!r} exists.")
            new = StoredObject(uri, len(data), f"v{next(self._versions)}", content_type, kept, bytes(data))
            self._objects[uri] = new
        _report(progress, len(data))
        return ObjectInfo(uri, new.size, new.etag, content_type, kept)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        split(prefix, self.scheme, prefix=True)
        with self._lock:
            found = [stored for uri, stored in self._objects.items() if uri.startswith(prefix)]
        for stored in sorted(found, key=lambda stored: stored.uri.encode()):
            yield ObjectInfo(stored.uri, stored.size, stored.etag)

    def delete(self, uri: str) -> None:
        split(uri, self.scheme)
        with self._lock:
            self._objects.pop(uri, None)

    def _found(self, uri: str, etag: str | None) -> StoredObject:
        split(uri, self.scheme)
        with self._lock:
            found = self._objects.get(uri)
        if found is None:
            raise InputNotFound(f"{shown(uri)!r} does not exist.")
        if etag is not None and etag != found.etag:
            raise InputChanged(f"{shown(uri)!r} was written anew since its version was pinned.")
        return replace(found)


def _report(progress: Progress | None, size: int) -> None:
    for done in range(0, size if progress else 0, _STEP):
        assert progress is not None
        progress(min(_STEP, size - done))
