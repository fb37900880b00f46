"""What only an S3 store can get wrong: foreign errors, servers that lie or break off, secrets in messages."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import botocore.exceptions as boto_errors
import pytest
import urllib3.exceptions

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
from farm.storage import S3Settings, create_once_honoured, open_store, require_create_once
from farm.storage import s3 as s3_module
from farm.storage.s3 import CODES, STATUSES, S3Store, mapped
from tests.servers.scripted import Answer, error, scripted

URI = "s3://bucket/key"


def store(url: str, **changes) -> S3Store:
    return S3Store(
        S3Settings(
            **{
                "endpoint_url": url,
                "access_key": "AKIDHUSH",
                "secret_key": "SECRETHUSH",
                "path_style": True,
                "read_timeout": 5,
                **changes,
            }
        )
    )


# The map of foreign errors


def boto_exceptions() -> list[type[Exception]]:
    found = [cls for _, cls in inspect.getmembers(boto_errors, inspect.isclass) if issubclass(cls, Exception)]
    return [cls for cls in found if issubclass(cls, boto_errors.BotoCoreError)]


@pytest.mark.parametrize("cls", boto_exceptions(), ids=lambda cls: cls.__name__)
def test_each_of_botos_exceptions_is_mapped(cls):
    made = cls.__new__(cls)
    found = mapped(made, URI)
    network = (
        boto_errors.ConnectionError,
        boto_errors.HTTPClientError,
        boto_errors.IncompleteReadError,
        boto_errors.FlexibleChecksumError,
        boto_errors.MetadataRetrievalError,
    )
    if issubclass(cls, network):
        assert type(found) is StoreUnavailable
    assert type(found) in (StoreUnavailable, Misconfigured)
    assert (URI in found.message and cls.__name__ in found.message) or "credentials" in found.message


# The codes that Amazon documents and Ceph sends, with what a job or its operator should be told.
EXPECTED = {
    InputNotFound: [("NoSuchKey", 404), ("NoSuchBucket", 404), ("404", 404), ("NoSuchVersion", 404), ("New", 404)],
    InputForbidden: [("AccessDenied", 403), ("403", 403), ("AllAccessDisabled", 403), ("InvalidObjectState", 403)],
    InputChanged: [("PreconditionFailed", 412), ("412", 412), ("InvalidRange", 416), ("416", 416)],
    ObjectTooLarge: [("EntityTooLarge", 400), ("413", 413)],
    InvalidName: [("KeyTooLongError", 400), ("InvalidBucketName", 400), ("InvalidObjectName", 400), ("414", 414)],
    StoreUnavailable: [
        ("SlowDown", 503),
        ("ServiceUnavailable", 503),
        ("InternalError", 500),
        ("RequestTimeout", 400),
        ("502", 502),
        ("504", 504),
        ("507", 507),
        ("599", 599),
        ("TooManyRequests", 429),
        ("OperationAborted", 409),
        ("ConditionalRequestConflict", 409),
        ("QuotaExceeded", 403),
        ("ExpiredToken", 400),
        ("BadDigest", 400),
        ("IncompleteBody", 400),
        ("", 0),
    ],
    Misconfigured: [
        ("InvalidAccessKeyId", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("AuthorizationHeaderMalformed", 400),
        ("PermanentRedirect", 301),
        ("TemporaryRedirect", 307),
        ("NotImplemented", 501),
        ("InvalidRequest", 400),
        ("MalformedXML", 400),
        ("402", 402),
    ],
}


@pytest.mark.parametrize(
    ("cls", "code", "status"), [(cls, code, status) for cls, pairs in EXPECTED.items() for code, status in pairs]
)
def test_each_code_is_mapped(cls, code, status):
    response = {"Error": {"Code": code, "Message": "hush"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    found = mapped(boto_errors.ClientError(response, "GetObject"), URI)
    assert type(found) is cls
    assert code in found.message and "hush" not in found.message


def test_no_status_and_no_declared_code_is_left_without_a_meaning():
    for status in range(300, 600):
        response = {"Error": {"Code": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
        found = mapped(boto_errors.ClientError(response, "X"), URI)
        assert isinstance(found, FarmError)
        assert found.retryable == ((status >= 500 and status != 501) or status in (408, 409, 425, 429))
    model = boto3.session.Session().client("s3", region_name="us-east-1").meta.service_model
    for shape in model.error_shapes:
        response = {"Error": {"Code": shape.name}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        assert isinstance(mapped(boto_errors.ClientError(response, "X"), URI), FarmError)
    for cls, what in (*CODES.values(), *STATUSES.values()):
        assert issubclass(cls, FarmError) and what


@pytest.mark.parametrize(
    "cls", [urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError, TimeoutError, OSError]
)
def test_what_slips_through_boto_is_mapped_too(cls):
    assert type(mapped(cls("x"), URI)) is StoreUnavailable


# Over the wire


def test_each_call_maps_what_the_server_says():
    for status, code, expected in (
        (404, "NoSuchKey", InputNotFound),
        (403, "AccessDenied", InputForbidden),
        (403, "SignatureDoesNotMatch", Misconfigured),
        (503, "SlowDown", StoreUnavailable),
        (500, "InternalError", StoreUnavailable),
    ):
        with scripted(lambda _, s=status, c=code: error(s, c)) as url:
            at = store(url)
            for act in (
                lambda at=at: at.get(URI, max_bytes=9),
                lambda at=at: at.get_range(URI, 0, 1),
                lambda at=at: at.put(URI, b"", content_type="t/t", create_only=False),
                lambda at=at: at.put(URI, b"", content_type="t/t", create_only=True),
                lambda at=at: at.delete(URI),
                lambda at=at: list(at.list("s3://bucket/")),
            ):
                with pytest.raises(expected) as caught:
                    act()
                assert type(caught.value) is expected
                assert "HUSH" not in str(caught.value)


def test_a_head_has_no_body_to_tell_the_code():
    for status, expected in ((404, InputNotFound), (403, InputForbidden), (503, StoreUnavailable)):
        with scripted(lambda _, s=status: Answer(s, {"Content-Length": "0"})) as url, pytest.raises(expected):
            store(url).head(URI)


def test_nobody_there():
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        store("http://127.0.0.1:9").get(URI, max_bytes=9)


def test_a_server_that_does_not_answer():
    over = threading.Event()

    def stall(_):
        over.wait()
        return Answer()

    with scripted(stall) as url:
        with pytest.raises(StoreUnavailable, match="ReadTimeoutError"):
            store(url, read_timeout=0.3).get(URI, max_bytes=9)
        over.set()


def test_a_body_that_stalls():
    over = threading.Event()

    def body():
        yield b"12345"
        over.wait()

    with scripted(lambda _: Answer(200, {"Content-Length": "10"}, body())) as url:
        with pytest.raises(StoreUnavailable, match="ReadTimeoutError"):
            store(url, read_timeout=0.3).get(URI, max_bytes=10)
        over.set()


@pytest.mark.parametrize("cut", [True, False])
def test_a_body_that_breaks_off(cut):
    with (
        scripted(lambda _: Answer(200, {"Content-Length": "1000"}, [b"1" * 10], cut)) as url,
        pytest.raises(StoreUnavailable),
    ):
        store(url).get(URI, max_bytes=2000)
    with (
        scripted(lambda _: Answer(206, {"Content-Length": "10"}, [b"1" * 5], cut)) as url,
        pytest.raises(StoreUnavailable),
    ):
        store(url).get_range(URI, 0, 10)


def test_a_body_without_a_length_is_capped_while_it_streams():
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b"1" * 65536

    with scripted(lambda _: Answer(200, {}, endless())) as url, pytest.raises(ObjectTooLarge, match="went on"):
        store(url).get(URI, max_bytes=1_000_000)
    assert len(sent) < 200  # 13 MB: what socket buffers hold, and no more


def test_a_length_that_is_too_small_does_not_let_more_through():
    with scripted(lambda _: Answer(200, {"Content-Length": "5"}, [b"1" * 1000])) as url:
        assert store(url).get(URI, max_bytes=5).data == b"11111"


def test_a_length_that_is_too_large_is_refused_before_a_byte_is_read():
    seen = []
    with (
        scripted(lambda _: Answer(200, {"Content-Length": "1000000"}, [b"1"])) as url,
        pytest.raises(ObjectTooLarge, match="1,000,000 bytes"),
    ):
        store(url).get(URI, max_bytes=5, progress=seen.append)
    assert seen == []


def test_a_server_that_ignores_a_pin_or_a_range_is_found_out():
    with scripted(lambda _: Answer(200, {"Content-Length": "1", "ETag": '"other"'}, [b"1"])) as url:
        with pytest.raises(InputChanged, match="pinned"):
            store(url).get(URI, max_bytes=5, etag="mine")
        with pytest.raises(Misconfigured, match="ranges"):
            store(url).get_range(URI, 0, 1)


def test_a_conflict_is_tried_again_and_a_lost_race_is_not():
    asked = []

    def conflict_twice(request):
        asked.append(request)
        if len(asked) < 3:
            return error(409, "ConditionalRequestConflict")
        return Answer(200, {"Content-Length": "0"})

    with scripted(conflict_twice) as url:
        store(url).put(URI, b"body", content_type="t/t", create_only=True, progress=lambda _: None)
    assert [request.headers["if-none-match"] for request in asked] == ["*"] * 3
    assert all(b"body" in request.body for request in asked)

    asked.clear()
    with scripted(lambda r: (asked.append(r), error(412, "PreconditionFailed"))[1]) as url, pytest.raises(ObjectExists):
        store(url).put(URI, b"body", content_type="t/t", create_only=True)
    assert len(asked) == 1


def test_a_conflict_that_lasts_is_for_the_farm_to_retry(monkeypatch):
    monkeypatch.setattr(s3_module.time, "sleep", lambda _: None)
    asked = []
    with (
        scripted(lambda r: (asked.append(r), error(409, "OperationAborted"))[1]) as url,
        pytest.raises(StoreUnavailable, match="someone else"),
    ):
        store(url).put(URI, b"", content_type="t/t", create_only=True)
    assert len(asked) == 1 + len(s3_module._CONFLICT_PAUSES)


def test_boto_tries_as_often_as_it_is_told():
    for attempts in (1, 3):
        asked = []
        with (
            scripted(lambda r, a=asked: (a.append(r), error(503, "SlowDown"))[1]) as url,
            pytest.raises(StoreUnavailable),
        ):
            store(url, max_attempts=attempts).get(URI, max_bytes=9)
        assert len(asked) == attempts


@pytest.mark.parametrize(("checksums", "sent"), [("when_supported", True), ("when_required", False)])
def test_checksums_are_sent_as_the_setting_says(checksums, sent):
    asked = []
    with scripted(lambda r: (asked.append(r), Answer(200, {"Content-Length": "0"}))[1]) as url:
        store(url, checksums=checksums).put(URI, b"1", content_type="t/t", create_only=False)
    assert any(name.startswith("x-amz-checksum-") for name in asked[0].headers) == sent


# A store that ignores If-None-Match


def forgetful():
    """A store that takes every write, as some look-alikes do."""
    held = {}

    def answer(request):
        if request.method == "PUT":
            held[request.path] = request.body
        elif request.method == "DELETE":
            held.pop(request.path, None)
            return Answer(204)
        body = held.get(request.path, b"") if request.method == "GET" else b""
        return Answer(200, {"Content-Length": str(len(body))}, [body])

    return held, answer


def test_a_store_that_ignores_create_once_is_refused():
    held, answer = forgetful()
    with scripted(answer) as url:
        at = store(url, checksums="when_required")
        assert not create_once_honoured(at, "s3://bucket/farm")
        with pytest.raises(Misconfigured, match="If-None-Match"):
            require_create_once(at, "s3://bucket/farm")
    assert held == {}


def test_a_store_that_lets_two_racers_win_is_found_out():
    held, answer = forgetful()
    everybody = threading.Barrier(8)

    def checks_before_it_writes(request):
        if request.method == "PUT" and request.headers.get("if-none-match") == "*":
            if request.path in held:
                return error(412, "PreconditionFailed")
            if request.body != b"first":
                everybody.wait(10)  # all racers have looked, none has written
        return answer(request)

    with scripted(checks_before_it_writes) as url:
        assert not create_once_honoured(store(url, checksums="when_required"), "s3://bucket", racers=8)


# Settings and threads


def test_settings_keep_their_secrets():
    settings = S3Settings(access_key="AKIDHUSH", secret_key="SECRETHUSH", session_token="TOKENHUSH")
    assert "HUSH" not in repr(settings) + repr(S3Store(settings))
    with pytest.raises(Misconfigured) as caught:
        S3Settings(endpoint_url="http://user:HUSH@host")
    assert "HUSH" not in str(caught.value)


def test_without_credentials_one_clear_error(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(Misconfigured, match="no credentials"):
        S3Store(S3Settings(endpoint_url="http://127.0.0.1:9")).get(URI, max_bytes=9)


def test_the_client_is_made_once_and_late(monkeypatch):
    made = []
    monkeypatch.setattr(s3_module, "_connect", lambda settings: made.append(1) or time.sleep(0.05) or object())
    at = open_store("s3://bucket/farm")
    assert made == []
    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(lambda _: at._client, range(8)))
    assert len(made) == len(clients) == 1


def test_opening_a_local_store_does_not_import_boto3(tmp_path):
    code = "import sys; from farm.storage import open_store; open_store(sys.argv[1]); sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, f"file://{tmp_path}"], check=False).returncode == 0
