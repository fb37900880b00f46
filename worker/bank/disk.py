"""The disk tier: weights files by their sha256 in a folder that all workers of a machine may share.

    <folder>/files/<sha256>       the bytes; when one was last used is its modification time
    <folder>/versions/<hash>      what an object was seen to be: address, ETag, size, sha256 (JSON)
    <folder>/partial/<random>     a file that is being written, under its writer's lock
    <folder>/lock                 held while files get their names and others are dropped

Nothing here is the only copy of anything, so nothing is flushed to the platter: a file is believed only if its bytes
have the sha256 that it is named by, and one that was torn by a crash is fetched anew. For the same reason no trouble of
the disk is a job's: what cannot be kept is read from the store again next time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from farm import metrics
from farm.errors import Misconfigured
from worker.bank.versions import Version

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskTier:
    """Up to `max_bytes` of files; what is being written comes on top. For many threads and processes.

    Raises Misconfigured if the folder cannot be had.
    """

    name = "disk"

    def __init__(self, folder: Path, max_bytes: int):
        self._max_bytes = max_bytes
        self._files, self._versions, self._partial = (folder / name for name in ("files", "versions", "partial"))
        try:
            for made in (self._files, self._versions, self._partial):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = folder / "lock"
            self._lock.touch(mode=0o600)
            self._sweep()
            self._make_room(0)
        except OSError as error:
            raise Misconfigured(f"The folder {folder} cannot keep weights files ({error.strerror}).") from error

    def read(self, sha256: str, moved: Callable[[int], None]) -> bytes | None:
        """The file, verified; None if it is not here or not what it should be."""
        path = self._files / sha256
        try:
            data = _read(path, moved)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("a weights file on disk cannot be read and is fetched anew: %s", error)
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            log.warning("the weights file %s on disk is damaged and is fetched anew", sha256)
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)
        return data

    def __contains__(self, sha256: str) -> bool:
        return (self._files / sha256).exists()

    def write(self, sha256: str, data: bytes) -> None:
        """Keep the file, dropping those not used for longest. Says so in the log where the disk does not want it."""
        if len(data) > self._max_bytes or sha256 in self:
            return
        try:
            try:
                self._write(sha256, data)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                # Fuller than the budget says: others use the disk, too. Half of what is here makes room or nothing.
                self._make_room(self._max_bytes - self._total() // 2)
                self._write(sha256, data)
        except OSError as error:
            log.warning("a weights file of %d bytes is not kept on disk: %s", len(data), error)

    def version(self, path: str) -> Version | None:
        """What the object at `path` was when it was last read by any worker here."""
        try:
            kept = json.loads(self._version_file(path).read_bytes())
            if kept["path"] != path:
                return None
            return Version(str(kept["etag"]), int(kept["size"]), str(kept["sha256"]), at=float("-inf"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def note(self, path: str, version: Version) -> None:
        body = {"path": path, "etag": version.etag, "size": version.size, "sha256": version.sha256}
        with suppress(OSError), self._draft(json.dumps(body).encode()) as draft:
            draft.rename(self._version_file(path))

    def _version_file(self, path: str) -> Path:
        return self._versions / hashlib.sha256(path.encode()).hexdigest()

    # Writing

    def _write(self, sha256: str, data: bytes) -> None:
        with self._draft(data) as draft:
            self._make_room(len(data), lambda: draft.rename(self._files / sha256))

    @contextmanager
    def _draft(self, data: bytes) -> Iterator[Path]:
        """A file of these bytes under a name of its own, locked, removed if it was not renamed."""
        draft = self._partial / secrets.token_hex(12)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view[:_CHUNK]) :]
            yield draft  # a sweeper that came before the lock took the name away, and renaming it fails
        finally:
            draft.unlink(missing_ok=True)
            os.close(fd)

    def _sweep(self) -> None:
        """Remove what writers that died left behind: no living one's file can be locked."""
        for draft in self._partial.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), draft.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink(missing_ok=True)

    def _make_room(self, size: int, then: Callable[[], object] = lambda: None) -> None:
        """Drop files until `size` more bytes fit, then do `then`, one process at a time."""
        with self._lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = sorted(self._statuses(), key=lambda item: item[1].st_mtime_ns)
            total = sum(status.st_size for _, status in files)
            for path, status in files:
                if total + size <= self._max_bytes:
                    break
                begin = time.monotonic()
                path.unlink(missing_ok=True)
                total -= status.st_size
                metrics.lora_evictions.labels(self.name).inc()
                metrics.lora_eviction_seconds.labels(self.name).observe(time.monotonic() - begin)
            self._forget_old_versions()
            then()
            metrics.lora_bytes.labels(self.name).set(self._total())

    def _forget_old_versions(self, *, most: int = 20_000) -> None:
        """Versions are small, and true also of files that were dropped; there must not be endless many."""
        notes = list(self._versions.iterdir())
        if len(notes) > most:
            notes.sort(key=lambda path: path.stat().st_mtime_ns)
            for path in notes[: len(notes) // 2]:
                path.unlink(missing_ok=True)

    def _statuses(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._files.iterdir():
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _total(self) -> int:
        return sum(status.st_size for _, status in self._statuses())


def _read(path: Path, moved: Callable[[int], None]) -> bytes:
    chunks = []
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            chunks.append(chunk)
            moved(len(chunk))
    return b"".join(chunks)
