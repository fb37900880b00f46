"""Files and folders under a local store, by open folder instead of by path.

Paths are walked folder by folder without following symbolic links, so nothing outside a root can be reached, not even
by someone who swaps a folder for a link at the right moment.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from farm.errors import InvalidName
from farm.storage.base import ObjectInfo, Progress, split

CHUNK = 1 << 20
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: opening a pipe must not hang
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFTOVER_SECONDS = 3600  # a draft older than this belongs to a writer that died


def etag_of(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _descend(folder: int, name: str) -> int:
    """Opens the folder `name` in the open `folder`; ELOOP when it is a link."""
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, "symbolic link") from None
        raise


def walk(stack: ExitStack, root: Path, folders: tuple[str, ...], *, create: bool = False) -> int:
    """An open folder below `root`, closed with `stack`; with `create`, made on the way."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, here)
    for name in folders:
        try:
            there = _descend(here, name)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=here)
                os.fsync(here)
            there = _descend(here, name)
        stack.callback(os.close, there)
        here = there
    return here


def unlink(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def write(folder: int, name: str, data: bytes, progress: Progress | None) -> str:
    """A new file, on the disk when this returns; its ETag."""
    fd = os.open(name, _CREATE, 0o666, dir_fd=folder)
    try:
        view = memoryview(data)
        while view:
            written = os.write(fd, view[:CHUNK])
            view = view[written:]
            if progress:
                progress(written)
        # The kernel stamps files to about 4 ms; an inode that is freed and taken again within that time would come
        # back under the same ETag.
        now = time.time_ns()
        os.utime(fd, ns=(now, now))
        os.fsync(fd)
        return etag_of(os.fstat(fd))
    finally:
        os.close(fd)


@contextmanager
def alone(records: int) -> Iterator[None]:
    """One overwrite or removal at a time, over all processes, so that no version's record is left behind."""
    fcntl.flock(records, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(records, fcntl.LOCK_UN)


def supplant(records: int, drafts: int, draft: str, folder: int, name: str) -> None:
    """Gives the draft its name and removes the record of what had it before."""
    with alone(records):
        try:
            before = f"{etag_of(os.stat(name, dir_fd=folder, follow_symlinks=False))}.json"
        except FileNotFoundError:
            before = ""
        try:
            os.rename(draft, name, src_dir_fd=drafts, dst_dir_fd=folder)
        except IsADirectoryError:
            raise FileExistsError(errno.EEXIST, "folder") from None
        if before:
            unlink(records, before)


def discard(records: int, drafts: int, draft: str) -> None:
    """Removes a draft, and its record unless the draft has got its name (a second link, or no draft any more)."""
    with suppress(FileNotFoundError):
        status = os.stat(draft, dir_fd=drafts, follow_symlinks=False)
        if status.st_nlink == 1:
            unlink(records, f"{etag_of(status)}.json")
        unlink(drafts, draft)


def sweep(records: int, drafts: int) -> None:
    """Discards the drafts of writers that died."""
    oldest = time.time() - _LEFTOVER_SECONDS
    for draft in os.listdir(drafts):
        with suppress(FileNotFoundError):
            if os.stat(draft, dir_fd=drafts, follow_symlinks=False).st_mtime < oldest:
                discard(records, drafts, draft)


def listed(folder: int, base: str, start: str) -> Iterator[ObjectInfo]:
    """The objects below an open folder named `base`, as far as their path there begins with `start`."""
    with os.scandir(folder) as entries:
        found = [(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name) for entry in entries]
    for name in sorted((n for n in found if n.startswith(start)), key=os.fsencode):
        try:
            split(base + name, "file", prefix=name.endswith("/"))
            if name.endswith("/"):
                inner = _descend(folder, name[:-1])
                try:
                    yield from listed(inner, base + name, "")
                finally:
                    os.close(inner)
                continue
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (InvalidName, FileNotFoundError):  # no name of this port, or gone since
            continue
        if stat.S_ISREG(status.st_mode):
            yield ObjectInfo(base + name, status.st_size, etag_of(status))
