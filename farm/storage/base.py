"""The object-store port: what the farm asks of a store, and the rules for naming what lies in it.

An object is named by a URI, and one object has one name: `s3://bucket/key` in an S3 store, `file:///absolute/path`
in a local one. Nothing is percent-decoded, nothing is normalised; a name that would need it (`..`, `.`, `//`, `%2e`,
control characters) is refused, so that a prefix check on the text of a URI is a check on the object.

Every store raises the classes of `farm.errors` and nothing else:

    InvalidName         the URI is not one this port accepts
    UrlNotAllowed       another scheme or another store's name (https://…, an endpoint, file://host/…)
    AccessDenied        a local path outside the store's folders, or behind a symbolic link
    InputNotFound       no such object (or bucket)
    InputForbidden      the store says no
    InputChanged        the object is not the one that was pinned by its ETag
    ObjectTooLarge      more bytes than the caller allowed, whatever the headers said
    ObjectExists        a create-once write came second
    StoreUnavailable    time-outs, 5xx, a full disk: worth another try
    Misconfigured       wrong credentials, a folder that is not there, a store that cannot do what is asked
"""

from __future__ import annotations

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from farm.errors import InputNotFound, InvalidName, InvalidParameter, Misconfigured, ObjectExists, UrlNotAllowed

Progress = Callable[[int], None]
"""Called with a number of bytes each time some moved, so that whoever holds a lease can see that work goes on.

It is a sign of life, not a meter: a client that hashes or sends a body again reports those bytes again. It must not
raise."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object. `size` is in bytes; `etag` is opaque and changes when the bytes do.

    In a listing `content_type` is "" and `metadata` is empty, because S3 lists neither: `head` tells them.
    """

    uri: str
    size: int
    etag: str
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject(ObjectInfo):
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach an S3 server. Without keys boto3 finds credentials by itself (environment, role, token file)."""

    endpoint_url: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    path_style: bool = False  # servers of one's own rarely have a DNS name for each bucket
    checksums: Literal["when_supported", "when_required"] = "when_supported"  # Ceph over https needs when_required
    connect_timeout: float = 5.0  # seconds
    read_timeout: float = 30.0  # seconds without a byte
    max_attempts: int = 1  # tries inside boto3; the farm retries by itself, with full jitter
    max_connections: int = 32

    def __post_init__(self) -> None:
        if "@" in (self.endpoint_url or ""):
            raise Misconfigured("The S3 endpoint contains credentials; give them as access key and secret key.")


class ObjectStore(ABC):
    """A store of whole objects. Safe to use from many threads at once."""

    scheme: ClassVar[str]

    @abstractmethod
    def get(
        self, uri: str, *, max_bytes: int, etag: str | None = None, progress: Progress | None = None
    ) -> StoredObject:
        """The whole object; never holds more than `max_bytes` of it. With `etag`, that very version or InputChanged."""

    @abstractmethod
    def get_range(self, uri: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """Exactly `length` (≥ 1) bytes from `offset` (≥ 0); InputChanged when the object ends before."""

    @abstractmethod
    def head(self, uri: str) -> ObjectInfo:
        """What is known of the object, without its bytes."""

    def exists(self, uri: str) -> bool:
        """Whether there is such an object. Raises as `head` does, but for InputNotFound."""
        try:
            self.head(uri)
        except InputNotFound:
            return False
        return True

    @abstractmethod
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
        """Writes the object as a whole, or not at all.

        With `create_only` the first of any number of writers wins and the others get ObjectExists; without it the
        last one wins. `metadata`: see `checked_metadata`.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose URI begins with `prefix`, in the order of their UTF-8 bytes.

        `prefix` is text, as in S3: end it with "/" to mean a folder. Objects whose names this port refuses
        (folder markers such as "a/") are left out.
        """

    @abstractmethod
    def delete(self, uri: str) -> None:
        """Removes the object; nothing happens when there is none."""


# Names

_MAX_KEY_BYTES = 1024  # S3's limit
_BUCKET = re.compile(r"(?!.*\.[.-])(?!.*-\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST = re.compile(r"[0-9]+(?:\.[0-9]+){3}|[^@]*:[^@]*")  # an IPv4 or IPv6 address, or a port
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENCODED_ESCAPE = re.compile(r"%(?:25)*(?:2e|2f|5c|00)", re.IGNORECASE)
RESERVED = ".farm-meta"
"""A folder name that no key may contain: a local store keeps its own records there."""


def shown(uri: str) -> str:
    """`uri` as a message may show it: without credentials, signatures or control characters, not endless."""
    text = re.sub(r"//[^/]*@", "//***@", uri, count=1)
    text = re.sub(r"\?.*(signature|credential|x-amz-|token).*", "?***", text, flags=re.IGNORECASE | re.DOTALL)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:240])
    return text if len(text) <= 200 else text[:199] + "…"


def split(uri: str, scheme: str, *, prefix: bool = False) -> tuple[str, str]:
    """(bucket, key) of a URI of this scheme; for `file` the bucket is "" and the key has no leading "/".

    With `prefix` the key may be empty or end in "/". Raises InvalidName or UrlNotAllowed.
    """
    start = f"{scheme}://"
    _check_text(uri)
    if not uri.startswith(start):
        raise UrlNotAllowed(f"{shown(uri)!r} is not allowed here; this farm's objects are named {start}…")
    bucket, slash, key = uri[len(start) :].partition("/")
    if scheme == "file" and bucket:
        raise UrlNotAllowed(f"{shown(uri)!r} names a host; write three slashes, {start}/absolute/path.")
    if scheme != "file" and _HOST.fullmatch(bucket):
        raise UrlNotAllowed(f"{shown(uri)!r} names a host; the farm's endpoint is its own, write {start}bucket/key.")
    if scheme != "file" and not _BUCKET.fullmatch(bucket):
        raise InvalidName(f"{shown(uri)!r} does not begin with a bucket's name (3 to 63 of a-z, 0-9, '.', '-').")
    _check_key(uri, key, prefix and (bool(slash) or scheme != "file"))
    return bucket, key


def _check_text(text: str) -> None:
    if _UNPRINTABLE.search(text):
        raise InvalidName(f"{shown(text)!r} contains a control character or half a surrogate pair; rename the object.")


def _check_key(uri: str, key: str, prefix: bool) -> None:
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise InvalidName(f"{shown(uri)!r} has a key of more than {_MAX_KEY_BYTES} bytes.")
    if _ENCODED_ESCAPE.search(key):
        raise InvalidName(f"{shown(uri)!r} contains an encoded '.', '/', '\\' or NUL; names are taken as written.")
    if prefix and not key:
        return
    parts = key.split("/")
    if prefix and not parts[-1]:
        parts.pop()
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidName(f"{shown(uri)!r} has an empty, '.' or '..' part, or ends in '/'.")
        if part == RESERVED:
            raise InvalidName(f"{shown(uri)!r}: the name {RESERVED} is reserved.")


def join(uri: str, *parts: str) -> str:
    """A name below `uri`. A part may hold several steps ("a/b"), but none that lead elsewhere: InvalidName."""
    for part in parts:
        _check_text(part)
        _check_key(part, part, prefix=False)
    return "/".join([uri.removesuffix("/"), *parts])


# Metadata and ranges

_METADATA_KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_METADATA_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_MAX_METADATA_BYTES = 2048  # S3's limit for keys and values together


def checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of `metadata`, if every store can carry it: it travels in HTTP headers.

    Keys are lower-case letters, digits and "-"; values printable ASCII without space at either end; 2,048 bytes in all.
    """
    checked = dict(metadata or {})
    for key, value in checked.items():
        if not _METADATA_KEY.fullmatch(key) or not _METADATA_VALUE.fullmatch(value):
            raise InvalidParameter("metadata", f"{key!r} must be a-z, 0-9, '-' and its value printable ASCII.")
    if sum(len(key) + len(value) for key, value in checked.items()) > _MAX_METADATA_BYTES:
        raise InvalidParameter("metadata", f"must not exceed {_MAX_METADATA_BYTES} bytes.")
    return checked


def check_range(offset: int, length: int) -> None:
    if offset < 0 or length < 1:
        raise InvalidParameter("range", f"must have offset ≥ 0 and length ≥ 1, not {offset} and {length}.")


# Create-once, probed


def create_once_honoured(store: ObjectStore, prefix: str, *, racers: int = 8) -> bool:
    """Whether a create-once write below `prefix` really is one, tried on a scratch object that is removed again.

    Some S3 look-alikes ignore `If-None-Match`: the second write silently wins, and with it two workers both believe
    that they committed. The first write must stand, and of `racers` at once exactly one may win.
    """
    later, raced = join(prefix, f"probe-{secrets.token_hex(8)}"), join(prefix, f"probe-{secrets.token_hex(8)}")

    def wins(uri: str, data: bytes) -> bool:
        try:
            store.put(uri, data, content_type="text/plain", create_only=True)
        except ObjectExists:
            return False
        return True

    try:
        if not wins(later, b"first") or wins(later, b"second") or store.get(later, max_bytes=64).data != b"first":
            return False
        with ThreadPoolExecutor(racers) as pool:
            return sum(pool.map(lambda n: wins(raced, b"%d" % n), range(racers))) == 1
    finally:
        store.delete(later)
        store.delete(raced)


def require_create_once(store: ObjectStore, prefix: str) -> None:
    """Raises Misconfigured for a store on which the farm could do a job twice."""
    if not create_once_honoured(store, prefix):
        raise Misconfigured(
            f"The store at {shown(prefix)!r} ignores create-once writes (If-None-Match: *), so two workers could both "
            "commit one job. Use a store that honours them: AWS S3, Ceph, or a local folder."
        )
