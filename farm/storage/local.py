"""A store in local folders: the embedded default, and the twin of S3 that passes the same contract tests.

Below a root, objects are plain files that any program may read, and files that any program puts there are objects.
What files cannot carry (content type, metadata) lies in `<root>/.farm-meta/<etag>.json`, where the ETag is made of the
file's inode, modification time and size. A write prepares file and record under names of its own, then gives the file
its final name in one step: `link` (fails if the name is taken) or `rename`. Both keep inode and time, so a record
belongs to one version of one file, and the loser of a race cannot touch the winner's.

Symbolic links below a root are not followed (see `files.py`), so nothing outside the roots can be reached.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import ClassVar

from farm.errors import (
    AccessDenied,
    FarmError,
    InputChanged,
    InputForbidden,
    InputNotFound,
    InvalidName,
    Misconfigured,
    ObjectExists,
    ObjectTooLarge,
    StoreUnavailable,
)
from farm.storage.base import (
    RESERVED,
    ObjectInfo,
    ObjectStore,
    Progress,
    StoredObject,
    check_range,
    checked_metadata,
    shown,
    split,
)
from farm.storage.files import CHUNK, READ, alone, discard, etag_of, listed, supplant, sweep, unlink, walk, write

# What a name tells without a record; an object whose type is this and that has no metadata needs none.
_CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".json": "application/json",
    ".ndjson": "application/x-ndjson",
    ".html": "text/html",
}
_DEFAULT_TYPE = "application/octet-stream"

# Foreign errors, mapped at the edge; what is not here is the disk's trouble and worth another try.
ERRORS: dict[int, tuple[type[FarmError], str]] = {
    errno.ENOENT: (InputNotFound, "does not exist"),
    errno.ENOTDIR: (InputNotFound, "does not exist (a part of its path is a file)"),
    errno.EISDIR: (InputNotFound, "is a folder, not an object"),
    errno.ELOOP: (AccessDenied, "lies behind a symbolic link, which a local store does not follow"),
    errno.ENXIO: (AccessDenied, "is not a plain file"),
    errno.EACCES: (InputForbidden, "may not be accessed by this user; check the file's permissions"),
    errno.EPERM: (InputForbidden, "may not be accessed by this user; check the file's permissions"),
    errno.EROFS: (Misconfigured, "lies on a file system that is mounted read-only"),
    errno.EXDEV: (Misconfigured, "lies on another file system than its root; make that folder a root of its own"),
    errno.ENAMETOOLONG: (InvalidName, "has a part that is too long for this file system (255 bytes)"),
    errno.EILSEQ: (InvalidName, "has a name that this file system refuses"),
    errno.EINVAL: (InvalidName, "has a name that this file system refuses"),
    errno.ENOSPC: (StoreUnavailable, "cannot be written: the disk is full"),
    errno.EDQUOT: (StoreUnavailable, "cannot be written: the disk quota is used up"),
}


@contextmanager
def _mapped(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cls, what = ERRORS.get(error.errno or 0, (StoreUnavailable, f"failed: {os.strerror(error.errno or 0)}"))
        raise cls(f"{shown(uri)!r} {what}.") from error


class LocalStore(ObjectStore):
    """Objects `file:///root/…`. The first root is made if missing; the others must be there."""

    scheme: ClassVar[str] = "file"

    def __init__(self, root: str | Path, *more_roots: str | Path):
        self._roots: dict[str, Path] = {}  # as written and as resolved → the real folder
        self._swept: set[Path] = set()
        for index, given in enumerate((root, *more_roots)):
            path = Path(given).expanduser().absolute()
            with _mapped(f"file://{path}"):
                if index == 0:
                    path.mkdir(parents=True, exist_ok=True)
                if not path.is_dir():
                    raise Misconfigured(f"{str(path)!r} is not a folder; make it, or take it from the store's roots.")
                real = path.resolve()
            self._roots |= {str(path): real, str(real): real}

    def __repr__(self) -> str:
        return f"LocalStore({', '.join(sorted({str(real) for real in self._roots.values()}))})"

    # Reading

    def get(
        self, uri: str, *, max_bytes: int, etag: str | None = None, progress: Progress | None = None
    ) -> StoredObject:
        with self._opened(uri, etag) as (fd, info):
            if info.size > max_bytes:
                raise ObjectTooLarge(f"{shown(uri)!r} has {info.size:,} bytes; {max_bytes:,} are allowed.")
            chunks, total = [], 0
            while chunk := os.read(fd, min(CHUNK, max_bytes - total + 1)):
                total += len(chunk)
                if total > max_bytes:
                    raise ObjectTooLarge(f"{shown(uri)!r} grew past the {max_bytes:,} bytes that are allowed.")
                chunks.append(chunk)
                if progress:
                    progress(len(chunk))
            _check_still(uri, fd, info, etag)
        return StoredObject(info.uri, info.size, info.etag, info.content_type, info.metadata, b"".join(chunks))

    def get_range(self, uri: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        check_range(offset, length)
        with self._opened(uri, etag) as (fd, info):
            data = os.pread(fd, length, offset)
            _check_still(uri, fd, info, etag)
        if len(data) != length:
            raise InputChanged(f"{shown(uri)!r} has {info.size:,} bytes and ends inside the range that was asked for.")
        return data

    def head(self, uri: str) -> ObjectInfo:
        with self._opened(uri, None) as (_, info):
            return info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        path = prefix.rstrip("/")
        if (path.removeprefix("file://") or "/") in self._roots:
            prefix = path + "/"  # a root names the folder itself, never its siblings
        root, folders, start = self._locate(prefix, prefix=True)
        base = prefix.removesuffix(start)
        with ExitStack() as stack, _mapped(prefix):
            try:
                folder = walk(stack, root, folders)
            except (FileNotFoundError, NotADirectoryError):
                return
            yield from listed(folder, base, start)

    # Writing

    def put(
        self,
        uri: str,
        data: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str] | None = None,
        create_only: bool,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        kept = checked_metadata(metadata)
        root, folders, name = self._locate(uri)
        with ExitStack() as stack, _mapped(uri):
            records = walk(stack, root, (RESERVED,), create=True)
            drafts = walk(stack, root, (RESERVED, "tmp"), create=True)
            if root not in self._swept:
                self._swept.add(root)
                sweep(records, drafts)
            try:
                folder = walk(stack, root, folders, create=True)
            except NotADirectoryError:
                raise InvalidName(f"{shown(uri)!r} cannot be written: a part of its path is an object.") from None
            draft = secrets.token_hex(12)
            try:
                etag = write(drafts, draft, data, progress)
                if kept or content_type != _type_of(name):
                    record = json.dumps({"content_type": content_type, "metadata": kept}).encode()
                    write(records, f"{etag}.json", record, None)
                    os.fsync(records)
                if create_only:
                    os.link(draft, name, src_dir_fd=drafts, dst_dir_fd=folder)
                else:
                    supplant(records, drafts, draft, folder, name)
            except FileExistsError:
                raise _taken(uri, folder, name) from None
            finally:
                discard(records, drafts, draft)
            os.fsync(folder)
        return ObjectInfo(uri, len(data), etag, content_type, kept)

    def delete(self, uri: str) -> None:
        root, folders, name = self._locate(uri)
        with ExitStack() as stack, _mapped(uri):
            try:
                folder = walk(stack, root, folders)
                records = walk(stack, root, (RESERVED,), create=True)
                with alone(records):
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        os.unlink(name, dir_fd=folder)
                        unlink(records, f"{etag_of(status)}.json")
                        os.fsync(folder)
            except (FileNotFoundError, NotADirectoryError):
                return

    # Places

    def _locate(self, uri: str, *, prefix: bool = False) -> tuple[Path, tuple[str, ...], str]:
        """(root, folders below it, last part) of a URI; AccessDenied outside the roots, whether it exists or not."""
        _, key = split(uri, "file", prefix=prefix)
        *folders, name = key.split("/")
        for depth in range(len(folders), -1, -1):
            root = self._roots.get("/" + "/".join(folders[:depth]))
            if root is not None:
                return root, tuple(folders[depth:]), name
        raise AccessDenied(f"{shown(uri)!r} lies outside the folders of this store.")

    @contextmanager
    def _opened(self, uri: str, etag: str | None) -> Iterator[tuple[int, ObjectInfo]]:
        """The object's open file and what is known of it; a record that is removed meanwhile means: look again."""
        root, folders, name = self._locate(uri)
        with ExitStack() as stack, _mapped(uri):
            folder = walk(stack, root, folders)
            while True:
                fd = os.open(name, READ, dir_fd=folder)
                stack.callback(os.close, fd)
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode):
                    raise IsADirectoryError(errno.EISDIR, "folder")
                if not stat.S_ISREG(status.st_mode):
                    raise AccessDenied(f"{shown(uri)!r} is not a plain file.")
                info = self._described(stack, root, ObjectInfo(uri, status.st_size, etag_of(status)))
                if info.content_type or os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino == status.st_ino:
                    break
            if etag is not None and etag != info.etag:
                raise InputChanged(f"{shown(uri)!r} is not the version that was pinned; submit the job again.")
            yield fd, info if info.content_type else replace(info, content_type=_type_of(name))

    def _described(self, stack: ExitStack, root: Path, info: ObjectInfo) -> ObjectInfo:
        """`info` with its record's content type and metadata, if there is a record."""
        try:
            records = walk(stack, root, (RESERVED,))
            fd = os.open(f"{info.etag}.json", READ, dir_fd=records)
        except FileNotFoundError:
            return info
        with os.fdopen(fd, "rb") as file:
            try:
                record = json.load(file)
                return replace(info, content_type=record["content_type"], metadata=record["metadata"])
            except (ValueError, TypeError, KeyError):
                raise Misconfigured(f"The record {RESERVED}/{info.etag}.json of {root} is damaged.") from None


def _type_of(name: str) -> str:
    return _CONTENT_TYPES.get(PurePosixPath(name).suffix.lower(), _DEFAULT_TYPE)


def _check_still(uri: str, fd: int, info: ObjectInfo, etag: str | None) -> None:
    """Raises when another program wrote into the file while it was read: those bytes belong to no version."""
    if etag_of(os.fstat(fd)) == info.etag:
        return
    if etag is not None:
        raise InputChanged(f"{shown(uri)!r} changed while it was read; submit the job again.")
    raise StoreUnavailable(f"{shown(uri)!r} changed while it was read.")


def _taken(uri: str, folder: int, name: str) -> FarmError:
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return InvalidName(f"{shown(uri)!r} cannot be written: there is a folder of that name.")
    return ObjectExists(f"{shown(uri)!r} exists already.")
