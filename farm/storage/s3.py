"""A store on S3, through boto3: the only file that imports it.

Create-once is `If-None-Match: *` on a plain PUT, the one conditional write that S3 and Ceph both get right. A PUT whose
answer is lost may have been carried out: the caller that tries again and gets ObjectExists must look whose bytes won.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.config import Config

from farm.errors import (
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
    ObjectInfo,
    ObjectStore,
    Progress,
    S3Settings,
    StoredObject,
    check_range,
    checked_metadata,
    shown,
    split,
)

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3.client import S3Client

_CHUNK = 1 << 18
_CONFLICT_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds, upper ends of a full jitter

# Foreign errors, mapped at the edge: by S3's code where it says more than the status does, else by status.
_GONE = (InputNotFound, "does not exist")
_FORBIDDEN = (InputForbidden, "may not be accessed with the farm's credentials, if it exists; check name and policy")
_CREDENTIALS = (Misconfigured, "could not be reached: the store refuses the farm's credentials or its clock")
_BUSY = (StoreUnavailable, "could not be reached: the store is overloaded or out of order")
_REGION = (Misconfigured, "lies in another region or endpoint than the farm is set up for")
_REFUSED = (Misconfigured, "could not be reached: the store does not understand the request")
_PRECONDITION = (InputChanged, "is not the version that was pinned; submit the job again")

CODES: dict[str, tuple[type[FarmError], str]] = {
    "NoSuchKey": _GONE,
    "NoSuchBucket": (InputNotFound, "does not exist (there is no such bucket)"),
    "NoSuchVersion": _GONE,
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "InvalidObjectState": (InputForbidden, "is archived; restore it before submitting the job"),
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "RequestTimeTooSkewed": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": (StoreUnavailable, "could not be reached: the farm's session token has expired"),
    "TokenRefreshRequired": (StoreUnavailable, "could not be reached: the farm's session token has expired"),
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "PreconditionFailed": _PRECONDITION,
    "InvalidRange": (InputChanged, "ends before the range that was asked for"),
    "EntityTooLarge": (ObjectTooLarge, "is larger than the store takes in one piece"),
    "KeyTooLongError": (InvalidName, "has a key that is too long for the store"),
    "InvalidObjectName": (InvalidName, "has a key that the store refuses"),
    "InvalidBucketName": (InvalidName, "does not begin with a bucket's name"),
    "InvalidURI": (InvalidName, "has a key that the store refuses"),
    "BadDigest": (StoreUnavailable, "was damaged on its way to the store"),
    "XAmzContentSHA256Mismatch": (StoreUnavailable, "was damaged on its way to the store"),
    "IncompleteBody": (StoreUnavailable, "was cut short on its way to the store"),
    "QuotaExceeded": (StoreUnavailable, "cannot be written: the store's quota is used up"),
    "RequestTimeout": _BUSY,
    "SlowDown": _BUSY,
    "NotImplemented": (Misconfigured, "cannot be written create-once on this store; use one that knows If-None-Match"),
}

_REFUSALS = ("AccessDenied", "403")  # the second is all that a HEAD request is told

STATUSES: dict[int, tuple[type[FarmError], str]] = {
    403: _FORBIDDEN,
    404: _GONE,
    405: _FORBIDDEN,
    408: _BUSY,
    409: (StoreUnavailable, "is being written by someone else"),
    412: _PRECONDITION,
    413: CODES["EntityTooLarge"],
    414: CODES["KeyTooLongError"],
    416: CODES["InvalidRange"],
    425: _BUSY,
    429: _BUSY,
    501: CODES["NotImplemented"],
}

TRANSIENT: tuple[type[Exception], ...] = (
    boto_errors.ConnectionError,
    boto_errors.HTTPClientError,
    boto_errors.IncompleteReadError,
    boto_errors.ChecksumError,
    boto_errors.FlexibleChecksumError,
    boto_errors.CredentialRetrievalError,  # a role's credentials come over the network too
    boto_errors.MetadataRetrievalError,
    boto_errors.TokenRetrievalError,
    boto_errors.CapacityNotAvailableError,
    urllib3.exceptions.HTTPError,
    OSError,
)


def mapped(error: Exception, uri: str) -> FarmError:
    """The farm's error for one of boto's. Its message names the object and boto's class or code, never a URL."""
    if isinstance(error, boto_errors.ClientError):
        code, status = _code(error), _status(error)
        cls, what = CODES.get(code) or STATUSES.get(status) or _by_hundreds(status)
        return cls(f"{shown(uri)!r} {what} ({code} {status}).")
    if isinstance(error, TRANSIENT):
        return StoreUnavailable(f"{shown(uri)!r} could not be reached ({type(error).__name__}).")
    if isinstance(error, (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError)):
        return Misconfigured(f"{shown(uri)!r} could not be reached: there are no credentials for S3.")
    return Misconfigured(f"{shown(uri)!r} could not be reached: S3 is set up wrongly ({type(error).__name__}).")


def _by_hundreds(status: int) -> tuple[type[FarmError], str]:
    return _REGION if 300 <= status < 400 else _REFUSED if 400 <= status < 500 else _BUSY


def _code(error: boto_errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto_errors.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def _edge(uri: str) -> Iterator[None]:
    try:
        yield
    except (boto_errors.BotoCoreError, boto_errors.ClientError, urllib3.exceptions.HTTPError, OSError) as error:
        raise mapped(error, uri) from error


class _Watched(io.BytesIO):
    """A body that reports what is read of it."""

    def __init__(self, data: bytes, progress: Progress):
        super().__init__(data)
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if chunk:
            self._progress(len(chunk))
        return chunk


class S3Store(ObjectStore):
    """Objects `s3://bucket/key`. The client is made on first use, once, and serves all threads.

    Who may not list a bucket gets "forbidden" from S3 where others get "not found" (docs.aws.amazon.com, GetObject,
    Permissions), and the farm's roles may not list. Below `records`, prefixes that these credentials may read as a
    whole, a refusal therefore means that there is no such object.
    """

    scheme: ClassVar[str] = "s3"

    def __init__(self, settings: S3Settings, *, records: tuple[str, ...] = ()):
        self._settings, self._records = settings, records
        self._lock = threading.Lock()
        self._made: S3Client | None = None

    def __repr__(self) -> str:
        return f"S3Store({shown(self._settings.endpoint_url or 'AWS')})"

    @property
    def _client(self) -> S3Client:
        with self._lock:
            if self._made is None:
                self._made = _connect(self._settings)
            return self._made

    # Reading

    @contextmanager
    def _reading(self, uri: str) -> Iterator[None]:
        try:
            with _edge(uri):
                yield
        except InputForbidden as error:
            refused = isinstance(error.__cause__, boto_errors.ClientError) and _code(error.__cause__) in _REFUSALS
            if refused and uri.startswith(self._records):
                raise InputNotFound(f"{shown(uri)!r} does not exist, or may not be read.") from error.__cause__
            raise

    def get(
        self, uri: str, *, max_bytes: int, etag: str | None = None, progress: Progress | None = None
    ) -> StoredObject:
        with self._reading(uri):
            response = self._client.get_object(**_named(uri), **_pin(etag))
            with closing(response["Body"]) as body:
                if response.get("ContentLength", 0) > max_bytes:
                    raise ObjectTooLarge(
                        f"{shown(uri)!r} has {response['ContentLength']:,} bytes; {max_bytes:,} are allowed."
                    )
                data = _received(body, max_bytes, progress)
                if len(data) > max_bytes:
                    raise ObjectTooLarge(f"{shown(uri)!r} went on after the {max_bytes:,} bytes that are allowed.")
        info = _described(uri, len(data), response)
        if etag is not None and info.etag != etag:  # a server that ignores If-Match
            raise InputChanged(f"{shown(uri)!r} {_PRECONDITION[1]}.")
        return StoredObject(uri, len(data), info.etag, info.content_type, info.metadata, data)

    def get_range(self, uri: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        check_range(offset, length)
        with self._reading(uri):
            wanted = f"bytes={offset}-{offset + length - 1}"
            response = self._client.get_object(**_named(uri), **_pin(etag), Range=wanted)
            with closing(response["Body"]) as body:
                if response["ResponseMetadata"]["HTTPStatusCode"] != 206:
                    raise Misconfigured(f"{shown(uri)!r} lies on a store that ignores byte ranges.")
                data = _received(body, length, None)
        if len(data) != length:
            raise InputChanged(f"{shown(uri)!r} ends inside the range that was asked for.")
        return data

    def head(self, uri: str) -> ObjectInfo:
        with self._reading(uri):
            response = self._client.head_object(**_named(uri))
        return _described(uri, response["ContentLength"], response)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, start = split(prefix, "s3", prefix=True)
        with _edge(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
                for entry in page.get("Contents", []):
                    uri = f"s3://{bucket}/{entry['Key']}"
                    if _nameable(uri):
                        yield ObjectInfo(uri, entry["Size"], entry["ETag"].strip('"'))

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
        request: dict[str, Any] = {**_named(uri), "ContentType": content_type, "Metadata": kept}
        if create_only:
            request["IfNoneMatch"] = "*"
        for pause in (*_CONFLICT_PAUSES, None):
            request["Body"] = _Watched(data, progress) if progress else data
            try:
                with _edge(uri):
                    response = self._client.put_object(**request)
                return ObjectInfo(uri, len(data), response["ETag"].strip('"'), content_type, kept)
            except FarmError as error:
                status = _status(error.__cause__) if isinstance(error.__cause__, boto_errors.ClientError) else 0
                if status == 412 and create_only:
                    raise ObjectExists(f"{shown(uri)!r} exists already.") from error.__cause__
                if status != 409 or pause is None:  # 409: another write of this key is under way
                    raise
                time.sleep(random.uniform(0, pause))
        raise AssertionError("the last pause is None")

    def delete(self, uri: str) -> None:
        with _edge(uri):
            self._client.delete_object(**_named(uri))


def _connect(settings: S3Settings) -> S3Client:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if settings.path_style else "auto"},
        retries={"total_max_attempts": settings.max_attempts, "mode": "standard"},
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        max_pool_connections=settings.max_connections,
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        tcp_keepalive=True,
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url,
        # A server of one's own takes any region, but the signature needs one.
        region_name=settings.region or ("us-east-1" if settings.endpoint_url else None),
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        aws_session_token=settings.session_token,
        config=config,
    )


def _received(body: StreamingBody, most: int, progress: Progress | None) -> bytes:
    """The body, but no more than `most` + 1 bytes of it. Read to its end, where boto sees whether it was cut short."""
    chunks, left = [], most + 1
    while left and (chunk := body.read(min(_CHUNK, left))):
        chunks.append(chunk)
        left -= len(chunk)
        if progress:
            progress(len(chunk))
    return b"".join(chunks)


def _named(uri: str) -> dict[str, Any]:
    bucket, key = split(uri, "s3")
    return {"Bucket": bucket, "Key": key}


def _pin(etag: str | None) -> dict[str, Any]:
    return {} if etag is None else {"IfMatch": f'"{etag}"'}


def _nameable(uri: str) -> bool:
    try:
        split(uri, "s3")
    except InvalidName:
        return False
    return True


def _described(uri: str, size: int, response: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        uri, size, response["ETag"].strip('"'), response.get("ContentType", ""), dict(response.get("Metadata", {}))
    )
