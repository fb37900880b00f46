"""Which addresses a webhook may have, what it says, and how it is signed."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from farm.config import load_settings
from farm.errors import Misconfigured, UrlNotAllowed
from farm.schemas import InpaintJob, JobResult, Output
from farm.states import JobState
from farm.tenants import Tenants
from farm.webhooks.address import MAX_URL, check_url, parse, resolve
from farm.webhooks.message import MAX_BODY, Event, headers, job_event, secret_of, signature


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://hooks.example.com/a/b?c=d", ("https", "hooks.example.com", 443, "/a/b?c=d")),
        ("https://Hooks.Example.com", ("https", "hooks.example.com", 443, "/")),
        ("http://receiver:8080/x", ("http", "receiver", 8080, "/x")),
        ("https://example.com?x=1", ("https", "example.com", 443, "/?x=1")),
    ],
)
def test_an_address_has_four_parts(url: str, parts: tuple) -> None:
    assert parse(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "https://",
        "https:///path", "https://user@example.com/", "https://user:pass@example.com/", "https://example.com/#x",
        "https://example.com:0/", "https://example.com:99999/", "https://example.com:x/", "https://127.0.0.1/",
        "https://169.254.169.254/latest", "https://[::1]/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/",
        "https://example.com./", "https://exa mple.com/", "https://example.com/\r\nx: y", "https://example.com/é",
        "https://exämple.com/", "https://example.com\\@evil.com/", "https://-a.com/", "https://a..b/",
        "https://example.com/" + "x" * MAX_URL,
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_webhook_is_refused_by_its_text(url: str) -> None:
    with pytest.raises(UrlNotAllowed, match="webhook_url"):
        parse(url)
    with pytest.raises(UrlNotAllowed):
        InpaintJob(image="s3://bucket/x.png", webhook_url=url)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        target = parse(f"https://{text}")
    except UrlNotAllowed:
        return
    assert target.host == target.host.lower() and " " not in target.path and target.path.isprintable()


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        ("https://a.example/", "a.example", True),
        ("https://b.a.example/", "a.example", False),
        ("https://b.a.example/", "*.a.example", True),
        ("https://c.b.a.example/", "*.a.example", True),
        ("https://a.example/", "*.a.example", False),
        ("https://evila.example/", "*.a.example", False),
        ("https://a.example.evil.com/", "a.example", False),
        ("https://a.example:8443/", "a.example", False),
        ("https://a.example:8443/", "a.example:8443", True),
        ("https://a.example/", "a.example:8443", False),
        ("http://a.example/", "a.example", False),
    ],
)
def test_the_allowlist_is_of_hosts_and_ports(url: str, pattern: str, allowed: bool) -> None:
    if allowed:
        assert check_url(url, hosts=[pattern], allow_http=False)
    else:
        with pytest.raises(UrlNotAllowed):
            check_url(url, hosts=[pattern], allow_http=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.0.192", "198.18.0.1", "240.0.0.1",
        "168.63.129.16", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1",
        "2001:0:53aa:64c:0:fbff:58f7:ff", "::127.0.0.1", "64:ff9b:1::1", "192.0.0.8", "3fff::1", "2001:2::1",
    ],
)  # fmt: skip
def test_no_address_inside_is_called(address: str) -> None:
    target = parse("https://hooks.example/")
    with pytest.raises(UrlNotAllowed, match="not public"):
        resolve(target, resolver=lambda *_: [address])
    with pytest.raises(UrlNotAllowed):  # nor one that hides behind a public one
        resolve(target, resolver=lambda *_: ["93.184.216.34", address])


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses_are(address: str) -> None:
    assert resolve(parse("https://hooks.example/"), resolver=lambda *_: [address]) == address


def test_a_private_network_can_be_allowed_and_no_other() -> None:
    target = parse("https://hooks.example/")
    assert resolve(target, networks=["10.1.0.0/16"], resolver=lambda *_: ["10.1.2.3"]) == "10.1.2.3"
    with pytest.raises(UrlNotAllowed):
        resolve(target, networks=["10.1.0.0/16"], resolver=lambda *_: ["10.2.2.3"])
    with pytest.raises(OSError, match="no address"):
        resolve(target, resolver=lambda *_: [])


def test_the_signature_is_the_specifications() -> None:
    # the example secret and message of the reference libraries' own tests
    secret = secret_of(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    event = Event("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}')
    assert signature(event, timestamp=1614265330, secret=secret) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_every_secret_signs() -> None:
    event = Event("job_x_0", b"{}")
    secrets = [SecretBytes(b"a" * 32), SecretBytes(b"b" * 32)]
    made = headers(event, timestamp=7, secrets=secrets)
    assert made["webhook-signature"].split(" ") == [signature(event, timestamp=7, secret=one) for one in secrets]
    assert (made["webhook-id"], made["webhook-timestamp"]) == ("job_x_0", "7")
    with pytest.raises(Misconfigured):
        headers(event, timestamp=7, secrets=[])


@pytest.mark.parametrize("text", [b"", b"short", b"whsec_!!!!", b"whsec_" + base64.b64encode(b"x" * 23)])
def test_a_weak_or_broken_secret_is_refused(text: bytes) -> None:
    with pytest.raises(Misconfigured):
        secret_of(text)


def result(**fields) -> JobResult:
    return JobResult(
        job_id="a" * 32, tenant="default", batch_id="b" * 32, custom_id="sku", status=JobState.SUCCEEDED, model="m",
        image="s3://bucket/x.png", finished_at=datetime(2026, 11, 1, tzinfo=UTC), **fields,
    )  # fmt: skip


def test_a_body_is_bounded_and_an_id_holds_no_dot() -> None:
    output = Output(uri="s3://bucket/" + "o" * 900, sha256="0" * 64, bytes=1, width=1, height=1, seed=1)
    small = job_event(result(outputs=(output,) * 2, metadata={"a": "b"}), "s3://bucket/r.json")
    assert (
        json.loads(small.body)["data"]["metadata"] == {"a": "b"} and len(json.loads(small.body)["data"]["outputs"]) == 2
    )
    large = job_event(result(outputs=(output,) * 16, metadata={"a": "x" * 60_000}), "s3://bucket/r.json")
    assert len(large.body) <= MAX_BODY and json.loads(large.body)["data"]["metadata"] is None
    assert "." not in large.id


def test_hosts_and_networks_are_checked_where_they_are_set(tmp_path) -> None:
    for wrong in ("https://a.example", "a.example/x", "*", "A.example", "a.example:0", "127.0.0.1"):
        with pytest.raises(Misconfigured, match="FARM_WEBHOOK_HOSTS"):
            load_settings(webhook_hosts=(wrong,))
    with pytest.raises(Misconfigured, match="FARM_WEBHOOK_NETWORKS"):
        load_settings(webhook_networks=("10.0.0.1/8",))
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps({"acme": {"webhook_hosts": ["hooks.acme.example"], "images": ["s3://acme/"]}, "b": {}}))
    tenants = Tenants.load(load_settings(store="s3://bucket/farm", tenants=path, webhook_hosts=("other.example",)))
    assert tenants.have_webhooks and tenants.check_webhook("https://hooks.acme.example/", tenant="acme")
    job = InpaintJob(tenant="acme", image="s3://acme/x.png", webhook_url="https://other.example/")
    with pytest.raises(UrlNotAllowed, match="not among the hosts"):
        tenants.check_job(job)
    with pytest.raises(UrlNotAllowed):
        tenants.check_webhook("https://hooks.acme.example/", tenant="b")
    assert not Tenants.load(load_settings(store="s3://bucket/farm")).have_webhooks
