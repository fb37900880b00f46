"""What only a local store can get wrong: paths that lead out, files that others write, records, leftovers."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

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
from farm.storage import join, open_store
from farm.storage import local as local_module
from farm.storage.local import ERRORS, LocalStore


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def store(root):
    return LocalStore(root)


def put(store, uri, data=b"x", **more):
    return store.put(uri, data, **{"content_type": "text/plain", "create_only": True, **more})


def records(root):
    return sorted(path.name for path in (root / ".farm-meta").glob("*.json"))


def drafts(root):
    return sorted((root / ".farm-meta" / "tmp").iterdir())


# Confinement


@pytest.mark.parametrize("where", ["outside.txt", "rooted/x", "none", ""])
def test_outside_the_root_everything_is_denied_alike(store, tmp_path, where):
    (tmp_path / "outside.txt").write_text("secret")
    uri = f"file://{tmp_path}/{where}"
    acts = [lambda: list(store.list(uri))]
    if where:
        acts += [lambda: store.get(uri, max_bytes=99), lambda: store.head(uri), lambda: store.delete(uri)]
        acts += [lambda: put(store, uri)]
    for act in acts:
        with pytest.raises(AccessDenied, match="outside the folders"):
            act()
    assert (tmp_path / "outside.txt").read_text() == "secret"


def test_links_are_not_followed_wherever_they_stand(store, root, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_text("secret")
    (root / "file").symlink_to(tmp_path / "secret" / "a")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to(root)
    for name in ("file", "folder/a", "inside/a", "inside/folder/a"):
        uri = f"file://{root}/{name}"
        for act in (lambda u=uri: store.get(u, max_bytes=99), lambda u=uri: store.head(u)):
            with pytest.raises(AccessDenied, match="symbolic link"):
                act()
    for name in ("folder/new", "inside/new"):
        with pytest.raises(AccessDenied, match="symbolic link"):
            put(store, f"file://{root}/{name}")
    with pytest.raises(ObjectExists):
        put(store, f"file://{root}/file")
    put(store, f"file://{root}/file", b"mine", create_only=False)  # replaces the link, not what it points to
    assert (tmp_path / "secret" / "a").read_text() == "secret"
    assert [info.uri for info in store.list(f"file://{root}")] == [f"file://{root}/file"]


def test_a_folder_swapped_for_a_link_in_mid_flight_leads_nowhere(store, root, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_text("secret")
    put(store, f"file://{root}/d/a", b"public")
    over = threading.Event()

    def swap():
        while not over.is_set():
            (root / "d").rename(root / "kept")
            (root / "d").symlink_to(tmp_path / "secret")
            time.sleep(0.0002)
            (root / "d").unlink()
            (root / "kept").rename(root / "d")
            time.sleep(0.0002)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(store.get(f"file://{root}/d/a", max_bytes=99).data)
            except FarmError as error:
                seen.add(type(error))
    finally:
        over.set()
        thread.join()
    assert b"public" in seen and len(seen) > 1
    assert b"secret" not in seen


def test_pipes_sockets_and_devices_are_no_objects(store, root):
    os.mkfifo(root / "pipe")
    with pytest.raises(AccessDenied, match="plain file"):
        store.get(f"file://{root}/pipe", max_bytes=9)
    assert list(store.list(f"file://{root}")) == []


def test_more_roots_and_a_root_behind_a_link(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    store = open_store(f"file://{tmp_path}/store", extra_roots=(tmp_path / "link",))
    for name in ("link", "photos"):  # as given, and as it is really called
        got = store.get(f"file://{tmp_path}/{name}/a.png", max_bytes=9)
        assert (got.data, got.content_type, dict(got.metadata)) == (b"png", "image/png", {})
    with pytest.raises(Misconfigured, match="not a folder"):
        LocalStore(tmp_path / "store", tmp_path / "missing")
    with pytest.raises(Misconfigured, match="not a folder"):
        LocalStore(tmp_path / "store", tmp_path / "photos" / "a.png")


def test_the_most_specific_root_holds_the_records(tmp_path):
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    both = LocalStore(tmp_path / "outer", tmp_path / "outer" / "inner")
    put(both, f"file://{tmp_path}/outer/inner/a", metadata={"n": "1"})
    assert len(records(tmp_path / "outer" / "inner")) == 1
    assert not (tmp_path / "outer" / ".farm-meta").exists()


# Files that others write


def test_any_file_below_the_root_is_an_object(store, root):
    (root / "photos").mkdir()
    (root / "photos" / "ä b.JPG").write_bytes(b"jpeg")
    (root / "photos" / "unknown.xyz").write_bytes(b"?")
    (root / "photos" / "bad\nname").write_bytes(b"?")
    os.close(os.open(os.fsencode(root / "photos") + b"/\xff", os.O_CREAT))  # not UTF-8: no URI can name it
    listed = {info.uri.rsplit("/", 1)[1]: info for info in store.list(f"file://{root}/photos/")}
    assert sorted(listed) == ["unknown.xyz", "ä b.JPG"]
    got = store.get(listed["ä b.JPG"].uri, max_bytes=4, etag=listed["ä b.JPG"].etag)
    assert (got.data, got.content_type) == (b"jpeg", "image/jpeg")
    assert store.head(listed["unknown.xyz"].uri).content_type == "application/octet-stream"
    assert store.get(listed["ä b.JPG"].uri, max_bytes=4).etag == got.etag


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_that_changes_under_the_reader(store, root, pinned):
    path = root / "a"
    path.write_bytes(b"1" * 3_000_000)
    uri = f"file://{path}"
    etag = store.head(uri).etag if pinned else None

    def meddle(_):
        with path.open("r+b") as file:
            file.write(b"2")
        os.utime(path, ns=(1, 1))

    with pytest.raises(InputChanged if pinned else StoreUnavailable, match="changed while"):
        store.get(uri, max_bytes=10**7, etag=etag, progress=meddle)


def test_a_file_that_grows_past_the_cap_while_it_is_read(store, root):
    path = root / "a"
    path.write_bytes(b"1" * 2_000_000)

    def grow(_):
        with path.open("ab") as file:
            file.write(b"2" * 1_000_000)

    with pytest.raises(ObjectTooLarge, match="grew"):
        store.get(f"file://{path}", max_bytes=2_500_000, progress=grow)


def test_a_version_written_within_one_clock_tick_has_its_own_etag(store, root):
    uri = f"file://{root}/a"
    etags = [put(store, uri, b"same size", create_only=False).etag for _ in range(200)]
    assert len(set(etags)) == len(etags)


# Records


def test_records_come_and_go_with_their_objects(store, root):
    uri = join(f"file://{root}", "a.png")
    put(store, uri, metadata={"n": "1"}, content_type="image/png")
    assert len(records(root)) == 1
    with pytest.raises(ObjectExists):
        put(store, uri, metadata={"n": "2"}, content_type="image/png")
    assert len(records(root)) == 1
    put(store, uri, metadata={"n": "3"}, content_type="image/png", create_only=False)
    assert len(records(root)) == 1
    assert store.head(uri).metadata == {"n": "3"}
    put(store, uri, content_type="image/png", create_only=False)  # all of it follows from the name: no record
    assert records(root) == []
    put(store, uri, content_type="image/webp", create_only=False)
    assert store.head(uri).content_type == "image/webp"
    store.delete(uri)
    assert records(root) == [] and drafts(root) == []


def test_a_renamed_file_keeps_its_record(store, root):
    uri = put(store, f"file://{root}/a", metadata={"n": "1"}).uri
    (root / "a").rename(root / "b")
    assert store.head(f"file://{root}/b").metadata == {"n": "1"}
    with pytest.raises(InputNotFound):
        store.head(uri)


def test_a_damaged_record_is_told(store, root):
    uri = put(store, f"file://{root}/a", metadata={"n": "1"}).uri
    for damage in ("", "[]", "{}", "not json"):
        (root / ".farm-meta" / records(root)[0]).write_text(damage)
        with pytest.raises(Misconfigured, match="damaged"):
            store.head(uri)


def test_the_files_of_a_write_are_on_the_disk_before_it_returns(store, root, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    put(store, f"file://{root}/d/a", metadata={"n": "1"})
    assert str(root / "d") in synced and str(root) in synced and str(root / ".farm-meta") in synced
    assert sum("/.farm-meta/tmp/" in path for path in synced) == 1
    assert sum(path.endswith(".json") for path in synced) == 1


# Failures


def test_a_failed_write_leaves_nothing(store, root, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    put(store, f"file://{root}/first")
    for name in ("link", "fsync", "write", "utime"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(StoreUnavailable, match="disk is full"):
                put(store, f"file://{root}/a", metadata={"n": "1"})
        assert drafts(root) == [] and [info.uri for info in store.list(f"file://{root}")] == [f"file://{root}/first"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(StoreUnavailable):
            put(store, f"file://{root}/first", b"new", metadata={"n": "1"}, create_only=False)
    assert store.get(f"file://{root}/first", max_bytes=9).data == b"x"
    assert drafts(root) == []
    assert len(records(root)) == 1


def test_the_leftovers_of_a_killed_writer_are_cleared(store, root):
    kept = put(store, f"file://{root}/kept", metadata={"n": "1"}).uri
    code = (
        "import os, sys\n"
        "from farm.storage.local import LocalStore\n"
        "def end(*_, **__): os._exit(9)\n"
        "setattr(os, sys.argv[2], end)\n"
        "LocalStore(sys.argv[1]).put(f'file://{sys.argv[1]}/a', b'1', content_type='t/t', metadata={'n': '2'},"
        " create_only=True)\n"
    )
    for step, records_left in (("link", 2), ("unlink", 3)):  # before and after it got its name
        done = subprocess.run([sys.executable, "-c", code, str(root), step], check=False)
        assert done.returncode == 9
        assert len(drafts(root)) == 1 + (step == "unlink") and len(records(root)) == records_left
    for draft in drafts(root):
        status = draft.stat()
        name = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}.json"
        old = 1_000_000_000_000_000_000
        os.utime(draft, ns=(old, old))
        (root / ".farm-meta" / name).rename(root / ".farm-meta" / f"{status.st_ino:x}-{old:x}-{status.st_size:x}.json")
    put(LocalStore(root), f"file://{root}/b", create_only=True)
    assert drafts(root) == []
    assert store.head(f"file://{root}/a").metadata == {"n": "2"}
    assert store.head(kept).metadata == {"n": "1"}
    assert len(records(root)) == 3  # kept, a, b


def test_a_fresh_draft_is_left_to_its_writer(store, root):
    put(store, f"file://{root}/a")
    (root / ".farm-meta" / "tmp" / "in-use").write_bytes(b"")
    put(LocalStore(root), f"file://{root}/b")
    assert [path.name for path in drafts(root)] == ["in-use"]


def test_an_object_cannot_be_a_folder_too(store, root):
    put(store, f"file://{root}/a")
    with pytest.raises(InvalidName, match="is an object"):
        put(store, f"file://{root}/a/b")
    put(store, f"file://{root}/d/b")
    for create_only in (True, False):
        with pytest.raises(InvalidName, match="folder of that name"):
            put(store, f"file://{root}/d", create_only=create_only)
    with pytest.raises(InvalidName, match="too long"):
        put(store, f"file://{root}/{'x' * 256}")
    assert drafts(root) == []


def test_every_errno_becomes_an_error_of_the_farm(store, root, monkeypatch):
    put(store, f"file://{root}/a")
    for number in errno.errorcode:

        def fail(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(local_module.os, "fstat", fail)
            with pytest.raises(ERRORS.get(number, (StoreUnavailable, ""))[0], match="/a'") as caught:
                store.get(f"file://{root}/a", max_bytes=9)
        assert isinstance(caught.value.__cause__, OSError)


def test_a_file_without_permission(store, root):
    uri = put(store, f"file://{root}/a").uri
    (root / "a").chmod(0)
    for folder in (root, *root.parents[:3]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(InputForbidden, match="permissions"):
            store.get(uri, max_bytes=9)
    finally:
        os.seteuid(user)


def test_the_sidecar_is_plain_json(store, root):
    put(store, f"file://{root}/a", metadata={"n": "1"})
    record = json.loads((root / ".farm-meta" / records(root)[0]).read_text())
    assert record == {"content_type": "text/plain", "metadata": {"n": "1"}}


def test_importing_the_port_does_not_import_boto3():
    code = "import sys, farm.storage, farm.storage.local; sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
