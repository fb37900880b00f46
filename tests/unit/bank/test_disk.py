"""The disk tier: whole files or none, within its bytes, whatever died while it wrote and whoever else writes there."""

from __future__ import annotations

import errno
import fcntl
import os
from hashlib import sha256
from pathlib import Path

import pytest

from farm import metrics
from farm.errors import Misconfigured
from worker.bank.disk import DiskTier
from worker.bank.versions import Version


def write(disk: DiskTier, data: bytes, *, used: int) -> str:
    """Keep `data`, last used at second `used`; its name."""
    name = sha256(data).hexdigest()
    disk.write(name, data)
    if (path := disk._files / name).exists():
        os.utime(path, (used, used))
    return name


def read(disk: DiskTier, name: str) -> bytes | None:
    return disk.read(name, lambda size: None)


def counted(what: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"farm_lora_{what}", {"tier": "disk"}) or 0.0


def test_what_was_kept_comes_back_and_tells_of_its_bytes(tmp_path):
    disk, seen = DiskTier(tmp_path, 100), []
    name = write(disk, b"x" * 60, used=1)
    assert disk.read(name, seen.append) == b"x" * 60 and sum(seen) == 60
    assert read(disk, "0" * 64) is None
    assert list((tmp_path / "partial").iterdir()) == []


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    disk = DiskTier(tmp_path, 100)
    dropped, timed = (counted(name) for name in ("evictions_total", "eviction_seconds_count"))
    a, b = write(disk, b"a" * 50, used=1), write(disk, b"b" * 50, used=2)
    assert read(disk, a)  # used now
    c = write(disk, b"c" * 50, used=3)
    assert [name in disk for name in (a, b, c)] == [True, False, True]
    assert (counted("evictions_total"), counted("eviction_seconds_count")) == (dropped + 1, timed + 1)
    assert counted("bytes") == 100


def test_what_is_larger_than_all_of_it_is_not_kept(tmp_path):
    disk = DiskTier(tmp_path, 100)
    a = write(disk, b"a" * 50, used=1)
    assert write(disk, b"b" * 101, used=2) not in disk and a in disk


def test_a_smaller_budget_holds_from_the_start(tmp_path):
    disk = DiskTier(tmp_path, 100)
    a, b = write(disk, b"a" * 50, used=1), write(disk, b"b" * 50, used=2)
    smaller = DiskTier(tmp_path, 60)
    assert a not in smaller and b in smaller


@pytest.mark.parametrize("damage", [b"", b"y" * 60, b"x" * 59])
def test_a_damaged_file_is_as_good_as_none(tmp_path, damage):
    disk = DiskTier(tmp_path, 100)
    name = write(disk, b"x" * 60, used=1)
    (tmp_path / "files" / name).write_bytes(damage)
    assert read(disk, name) is None and name not in disk
    assert read(disk, write(disk, b"x" * 60, used=1)) == b"x" * 60


def test_what_a_dead_writer_left_is_swept_and_a_living_ones_is_not(tmp_path):
    disk = DiskTier(tmp_path, 100)
    (tmp_path / "partial" / "dead").write_bytes(b"half of")
    with (tmp_path / "partial" / "living").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        DiskTier(tmp_path, 100)
        assert [path.name for path in disk._partial.iterdir()] == ["living"]


def test_a_disk_fuller_than_the_budget_says_gives_up_half(tmp_path, monkeypatch):
    disk, os_write, refusals = DiskTier(tmp_path, 100), os.write, iter([True])
    a, b = write(disk, b"a" * 30, used=1), write(disk, b"b" * 30, used=2)

    def full_once(fd: int, data: memoryview) -> int:
        if next(refusals, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return os_write(fd, data)

    monkeypatch.setattr(os, "write", full_once)
    c = write(disk, b"c" * 30, used=3)
    assert [name in disk for name in (a, b, c)] == [False, True, True]


def test_a_file_that_cannot_be_read_is_fetched_anew(tmp_path, monkeypatch):
    disk = DiskTier(tmp_path, 100)
    name = write(disk, b"x", used=1)
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    assert read(disk, name) is None


def test_versions_are_remembered_for_their_own_address_only(tmp_path):
    disk, version = DiskTier(tmp_path, 100), Version("etag", 3, "f" * 64, at=5.0)
    disk.note("s3://b/a", version)
    again = DiskTier(tmp_path, 100)
    kept = again.version("s3://b/a")
    assert (kept.etag, kept.size, kept.sha256) == ("etag", 3, "f" * 64) and kept.at < version.at
    assert again.version("s3://b/b") is None
    again._version_file("s3://b/a").rename(again._version_file("s3://b/b"))
    assert again.version("s3://b/b") is None
    again._version_file("s3://b/c").write_bytes(b'{"path": "s3://b/c", "etag"')
    assert again.version("s3://b/c") is None


def test_there_are_not_endless_many_versions(tmp_path):
    disk = DiskTier(tmp_path, 100)
    for number in range(9):
        disk.note(f"s3://b/{number}", Version("e", 1, "0" * 64, at=0.0))
        os.utime(disk._version_file(f"s3://b/{number}"), (number, number))
    disk._forget_old_versions(most=8)
    assert [bool(disk.version(f"s3://b/{number}")) for number in range(9)] == [False] * 4 + [True] * 5


def test_a_folder_that_cannot_be_had(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured):
        DiskTier(tmp_path / "file", 100)
