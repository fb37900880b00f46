"""A manifest's bytes: a file on this machine, or an object of a store that is read in ranges and never held whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from farm.errors import InputForbidden, InputNotFound
from farm.storage import ObjectStore, shown

_RANGE_BYTES = 1 << 20


class ObjectFile(io.RawIOBase):
    """One version of an object as a seekable file. Raises the store's errors; InputChanged if it is written anew."""

    def __init__(self, store: ObjectStore, uri: str):
        self._store, self._info, self._place = store, store.head(uri), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._info.size)[whence])
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer is one
        length = min(len(buffer), self._info.size - self._place)
        if length <= 0:
            return 0
        buffer[:length] = self._store.get_range(self._info.uri, self._place, length, etag=self._info.etag)
        self._place += length
        return length


class Source:
    """Where a manifest lies: a path, `file:///…`, or `s3://…`, which `open_store` finds the store of."""

    def __init__(self, where: str | Path, open_store: Callable[[str], ObjectStore]):
        text = str(where)
        self.remote = text.startswith("s3://")
        self.uri = text if self.remote else f"file://{Path(text.removeprefix('file://')).expanduser().absolute()}"
        self._open_store = open_store

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[1]

    @property
    def folder(self) -> str:
        """The URI that the manifest's relative addresses hang under, ending in "/"."""
        return self.uri.rsplit("/", 1)[0] + "/"

    def open(self) -> BinaryIO:
        """Its bytes from the start. Raises InputNotFound or InputForbidden, and what a store raises."""
        if self.remote:
            return io.BufferedReader(ObjectFile(self._open_store(self.uri), self.uri), _RANGE_BYTES)
        try:
            return Path(self.uri.removeprefix("file://")).open("rb")
        except FileNotFoundError:
            raise InputNotFound(f"There is no manifest at {shown(self.uri)}; check the path.") from None
        except OSError as error:
            raise InputForbidden(f"{shown(self.uri)} cannot be read ({error.strerror}).") from None

    def sha256(self) -> str:
        """Of its bytes, in hexadecimal."""
        digest = sha256()
        with self.open() as file:
            while chunk := file.read(_RANGE_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
