"""What every object store must do, tried on each: a local folder, the real S3 server, and moto."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.errors import (
    InputChanged,
    InputNotFound,
    InvalidName,
    InvalidParameter,
    ObjectExists,
    ObjectTooLarge,
    UrlNotAllowed,
)
from farm.storage import create_once_honoured, join, open_store, require_create_once
from tests.conftest import StoreAt, store_at

TEXT = "text/plain"


@pytest.fixture(params=["local", "s3", "moto"])
def at(request, tmp_path) -> StoreAt:
    return store_at(request.param, request, tmp_path)


def put(at: StoreAt, name: str, data: bytes = b"x", *, create_only: bool = True, **more):
    return at.store.put(join(at.url, name), data, content_type=TEXT, create_only=create_only, **more)


def names(at: StoreAt, prefix: str = "") -> list[str]:
    return [info.uri.removeprefix(at.url + "/") for info in at.store.list(f"{at.url}/{prefix}")]


# Whole objects


def test_what_is_put_comes_back(at):
    written = put(at, "a/b.txt", b"hello", metadata={"job": "j-1", "sha256": "0" * 64})
    got = at.store.get(written.uri, max_bytes=5)
    assert (got.uri, got.data, got.size) == (written.uri, b"hello", 5)
    assert got.etag == written.etag != ""
    assert got.content_type == TEXT
    assert dict(got.metadata) == {"job": "j-1", "sha256": "0" * 64}
    head = at.store.head(written.uri)
    assert (head.size, head.etag, head.content_type) == (5, written.etag, TEXT)
    assert head.metadata == got.metadata == written.metadata


def test_bytes_do_not_show_in_repr(at):
    written = put(at, "a", b"hello")
    assert "hello" not in repr(at.store.get(written.uri, max_bytes=5))


def test_an_empty_object(at):
    written = put(at, "empty", b"")
    assert at.store.get(written.uri, max_bytes=0).data == b""
    assert at.store.head(written.uri).size == 0
    with pytest.raises(InputChanged):
        at.store.get_range(written.uri, 0, 1)


def test_twenty_megabytes_and_a_progress_hook(at):
    data = hashlib.shake_256(b"seed").digest(20_000_000)
    out, back = [], []
    written = put(at, "big.bin", data, progress=out.append)
    got = at.store.get(written.uri, max_bytes=len(data), progress=back.append)
    assert got.data == data
    assert sum(out) >= len(data) and max(out) <= 1 << 20  # a client may hash the body before it sends it
    assert sum(back) == len(data) and max(back) <= 1 << 20


def test_overwrite_replaces_bytes_metadata_and_etag(at):
    first = put(at, "a", b"same", metadata={"n": "1"})
    second = put(at, "a", b"more", create_only=False)
    got = at.store.get(first.uri, max_bytes=9)
    assert (got.data, dict(got.metadata), got.etag) == (b"more", {}, second.etag)
    assert first.etag != second.etag


def test_delete_is_idempotent(at):
    written = put(at, "a/b")
    at.store.delete(written.uri)
    at.store.delete(written.uri)
    at.store.delete(join(at.url, "never/there"))
    with pytest.raises(InputNotFound):
        at.store.get(written.uri, max_bytes=9)
    put(at, "a/b")  # the name is free again


@pytest.mark.parametrize("name", ["none", "none/below", "here/below"])
def test_what_is_not_there(at, name):
    put(at, "here")
    uri = join(at.url, name)
    for read in (
        lambda: at.store.get(uri, max_bytes=9),
        lambda: at.store.head(uri),
        lambda: at.store.get_range(uri, 0, 1),
    ):
        with pytest.raises(InputNotFound, match=name):
            read()


def test_a_folder_is_not_an_object(at):
    put(at, "folder/a")
    with pytest.raises(InputNotFound):
        at.store.get(join(at.url, "folder"), max_bytes=9)
    at.store.delete(join(at.url, "folder"))
    assert names(at) == ["folder/a"]


# Names

ODD_NAMES = [
    "a b",
    "päckchen/日本語/😀.png",
    "q?x=1&y#z",
    "100%25 and %zz",
    "plus+minus",
    "'quoted' \"twice\"",
    "back\\slash",
    "x" * 250,
    "…",
    ".hidden",
    "a..b/...",
    "~@:;,=!$&()*[]{}|<>^`",
]


def test_odd_names(at):
    for name in ODD_NAMES:
        written = put(at, name, name.encode())
        assert at.store.get(written.uri, max_bytes=999).data == name.encode()
        with pytest.raises(ObjectExists):
            put(at, name)
    assert names(at) == sorted(ODD_NAMES, key=str.encode)


BAD_NAMES = [
    "../a",
    "a/../../b",
    "a/..",
    ".",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    "",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\x85b",
    "a\u2028b",
    "%2e%2e/a",
    "%2E./a",
    "a%2fb",
    "a%252e",
    "a%00",
    "a%5cb",
    ".farm-meta/x",
    "a/.farm-meta",
    "\ud800",
    "x" * 1025,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(at, name):
    uri = f"{at.url}/{name}"
    for act in (
        lambda: at.store.get(uri, max_bytes=9),
        lambda: at.store.get_range(uri, 0, 1),
        lambda: at.store.head(uri),
        lambda: at.store.put(uri, b"", content_type=TEXT, create_only=False),
        lambda: at.store.delete(uri),
        lambda: join(at.url, name),
    ):
        with pytest.raises(InvalidName) as caught:
            act()
        assert str(caught.value).isprintable()
    assert names(at) == []


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://bucket.s3.amazonaws.com/key",
        "ftp://h/x",
        "file://host/etc/passwd",
        "//h/x",
        "/etc/passwd",
        "",
    ],
)
def test_urls_are_not_names(at, uri):
    for act in (
        lambda: at.store.get(uri, max_bytes=9),
        lambda: at.store.put(uri, b"", content_type=TEXT, create_only=True),
        lambda: list(at.store.list(uri)),
    ):
        with pytest.raises(UrlNotAllowed):
            act()


def test_credentials_in_a_url_are_not_repeated(at):
    for uri in (
        "s3://key:hush@bucket/a",
        "https://key:hush@h/x",
        "http://h/x?X-Amz-Signature=hush",
        "file://u:hush@h/",
    ):
        with pytest.raises((UrlNotAllowed, InvalidName)) as caught:
            at.store.get(uri, max_bytes=9)
        assert "hush" not in str(caught.value)


# Caps, ranges, pins


def test_the_cap(at):
    written = put(at, "a", b"12345")
    assert at.store.get(written.uri, max_bytes=5).size == 5
    seen = []
    with pytest.raises(ObjectTooLarge, match="5 bytes"):
        at.store.get(written.uri, max_bytes=4, progress=seen.append)
    assert seen == []


def test_ranges(at):
    data = bytes(range(256)) * 10
    uri = put(at, "a", data).uri
    for offset, length in ((0, 1), (0, len(data)), (100, 1000), (len(data) - 1, 1)):
        assert at.store.get_range(uri, offset, length) == data[offset : offset + length]
    for offset, length in ((len(data), 1), (len(data) - 1, 2), (0, len(data) + 1), (10**9, 5)):
        with pytest.raises(InputChanged):
            at.store.get_range(uri, offset, length)
    for offset, length in ((-1, 1), (0, 0), (0, -1)):
        with pytest.raises(InvalidParameter):
            at.store.get_range(uri, offset, length)


def test_a_pinned_version_or_nothing(at):
    first = put(at, "a", b"12345")
    assert at.store.get(first.uri, max_bytes=9, etag=first.etag).data == b"12345"
    assert at.store.get_range(first.uri, 1, 2, etag=first.etag) == b"23"
    second = put(at, "a", b"67890", create_only=False)
    for read in (
        lambda: at.store.get(first.uri, max_bytes=9, etag=first.etag),
        lambda: at.store.get_range(first.uri, 1, 2, etag=first.etag),
    ):
        with pytest.raises(InputChanged, match="pinned"):
            read()
    assert next(at.store.list(at.url)).etag == second.etag


# Lists


def test_lists_are_in_the_order_of_bytes(at):
    tree = ["b", "a", "a/1", "a/10", "a/2", "a-b", "a.c", "a0", "B", "ä", "z/y/x", "z/y-x", "é/1"]
    if at.kind == "local":
        tree.remove("a")  # a file system cannot hold both a and a/1
    for name in tree:
        put(at, name)
    assert names(at) == sorted(tree, key=str.encode)
    assert names(at, "a/") == ["a/1", "a/10", "a/2"]
    assert names(at, "a/1") == ["a/1", "a/10"]
    assert names(at, "z") == ["z/y-x", "z/y/x"]
    assert names(at, "z/y") == ["z/y-x", "z/y/x"]
    assert names(at, "nothing/here/") == []
    assert names(at, "b/") == []
    assert [info.uri for info in at.store.list(at.url)] == [info.uri for info in at.store.list(at.url + "/")]


def test_a_list_of_more_than_one_page(any_store):
    at = any_store
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(at, f"n/{n:05}", b"%d" % n), range(1100)))
    listed = list(at.store.list(f"{at.url}/n/"))
    assert [info.uri.rsplit("/", 1)[1] for info in listed] == [f"{n:05}" for n in range(1100)]
    assert listed[10].size == 2
    assert at.store.get(listed[10].uri, max_bytes=9, etag=listed[10].etag).data == b"10"


@pytest.mark.parametrize("prefix", ["../", "a/../", "a//", "%2e%2e/", "a\0"])
def test_bad_prefixes(at, prefix):
    with pytest.raises(InvalidName):
        list(at.store.list(f"{at.url}/{prefix}"))


# Metadata


@pytest.mark.parametrize(
    "metadata",
    [
        {"Upper": "x"},
        {"a_b": "x"},
        {"": "x"},
        {"a": ""},
        {"a": " x"},
        {"a": "ü"},
        {"a": "x\r\nset: y"},
        {"a": "x" * 2048},
    ],
)
def test_metadata_that_a_header_cannot_carry(at, metadata):
    with pytest.raises(InvalidParameter, match="metadata"):
        put(at, "a", metadata=metadata)
    assert names(at) == []


def test_odd_metadata_that_it_can(at):
    metadata = {"a": "b c", "long": "x" * 1900, "sign": "=?/%\"'\\,;", "0": "0"}
    assert dict(at.store.head(put(at, "a", metadata=metadata).uri).metadata) == metadata


# Create-once


def test_the_second_of_two_creates_changes_nothing(at):
    first = put(at, "a", b"first", metadata={"n": "1"})
    with pytest.raises(ObjectExists):
        put(at, "a", b"second", metadata={"n": "2"})
    got = at.store.get(first.uri, max_bytes=9)
    assert (got.data, dict(got.metadata), got.etag) == (b"first", {"n": "1"}, first.etag)


def test_sixteen_creates_at_once_have_one_winner(at):
    racers, winners = 16, []

    def race(uri: str, number: int, start: threading.Barrier) -> int | None:
        start.wait()
        try:
            data = b"%d" % number * 1000
            at.store.put(uri, data, content_type=TEXT, metadata={"n": str(number)}, create_only=True)
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(racers) as pool:
        for number in range(20):
            uri, start = join(at.url, f"race-{number}"), threading.Barrier(racers)
            ends = list(pool.map(lambda n, u=uri, s=start: race(u, n, s), range(racers)))
            winners.append([n for n in ends if n is not None])
            got = at.store.get(uri, max_bytes=10**5)
            if at.kind != "moto":  # moto lets two win once in a while, and says nothing of the real thing
                assert len(winners[-1]) == 1
                assert (got.data, dict(got.metadata)) == (b"%d" % winners[-1][0] * 1000, {"n": str(winners[-1][0])})
    assert len(winners) == 20 and all(winners)
    assert len(names(at)) == 20  # nothing of the losers is left


def test_overwrites_at_once_leave_one_whole_object(at):
    def write(number: int) -> None:
        put(at, "a", b"%d" % number * 1000, create_only=False, metadata={"n": str(number)})

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(write, range(40)):
            got = at.store.get(join(at.url, "a"), max_bytes=10**5)
            if at.kind != "moto":
                assert got.data == got.metadata["n"].encode() * 1000


def test_the_probe(at):
    if at.kind == "moto":
        assert create_once_honoured(at.store, at.url, racers=1)
    else:
        require_create_once(at.store, at.url)
    assert names(at) == []


# Opening


def test_a_store_opened_by_its_url(at, s3_server, moto_server):
    servers = {"radosgw": s3_server, "moto": moto_server}
    store = open_store(at.url, s3=servers[at.kind].settings() if at.kind in servers else None)
    put(at, "a", b"1")
    assert store.get(join(at.url, "a"), max_bytes=1).data == b"1"
    assert store.scheme == at.url.split(":")[0]
    for secret in ("FARMKEY", "FARMSECRET"):
        assert secret not in repr(store)


@pytest.mark.parametrize("url", ["http://host/bucket", "relative/folder", "file://host/folder", ""])
def test_what_is_not_a_store(url):
    with pytest.raises(UrlNotAllowed, match="file:///"):
        open_store(url)
