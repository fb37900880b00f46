"""A tenant reaches what its allowlists name, and nobody reaches the farm's own records or another tenant's pictures."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm import keys
from farm.config import Settings, load_settings
from farm.errors import AccessDenied, InvalidInput, Misconfigured, SignatureInvalid, UrlNotAllowed
from farm.names import check_redis_url, check_uri
from farm.schemas import InpaintJob, dump_line
from farm.storage import RECORDS
from farm.tenants import Tenants

STORE = "s3://farm-bucket/farm"
ACME = {
    "images": ["s3://acme/photos/"],
    "masks": ["s3://acme/masks/"],
    "loras": ["s3://acme/loras/"],
    "embeddings": ["s3://acme/words/"],
    "ip_adapters": ["s3://acme/adapters/"],
    "outputs": ["s3://acme/out/"],
}
FIELDS = {
    "image": lambda uri: {"image": uri},
    "mask": lambda uri: {"mask": uri},
    "loras": lambda uri: {"loras": [{"path": uri}]},
    "embeddings": lambda uri: {"embeddings": [{"path": uri}]},
    "ip_adapter": lambda uri: {"ip_adapter": {"path": uri, "image": "s3://acme/photos/a"}},
    "ip_adapter image": lambda uri: {"ip_adapter": {"path": "s3://acme/adapters/a", "image": uri}},
    "output": lambda uri: {"output": uri},
}
PLACE = {
    "image": "s3://acme/photos/a", "mask": "s3://acme/masks/a", "loras": "s3://acme/loras/a.safetensors",
    "embeddings": "s3://acme/words/a", "ip_adapter": "s3://acme/adapters/a", "ip_adapter image": "s3://acme/photos/a",
    "output": "s3://acme/out/a/",
}  # fmt: skip


def job(**fields) -> InpaintJob:
    return InpaintJob(**{"tenant": "acme", "image": "s3://acme/photos/a.png", **fields})


@pytest.fixture
def load(tmp_path):
    def tenants(content, store=STORE, **options) -> Tenants:
        path = None
        if content is not None:
            path = tmp_path / "tenants.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return Tenants.load(load_settings(store=store, tenants=path), **options)

    return tenants


# Places


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_has_its_own_places(load, field):
    tenants = load({"acme": ACME})
    tenants.check_job(job(**FIELDS[field](PLACE[field])))
    for uri in (
        "s3://acme/elsewhere/",
        "s3://acme-2/photos/",
        "s3://other/photos/",
        "s3://acme/photos-2/",
        STORE + "/",
        *(f"{STORE}/{area}/rival/" for area in RECORDS),
    ):
        with pytest.raises(AccessDenied, match="not among the places that tenant 'acme'"):
            tenants.check_job(job(**FIELDS[field](uri if field == "output" else uri + "x.safetensors")))


def test_the_place_of_one_field_is_not_that_of_another(load):
    tenants = load({"acme": ACME})
    for field, own in PLACE.items():
        for uri in set(PLACE.values()) - {own, PLACE["output"]}:
            with pytest.raises(AccessDenied):
                tenants.check_job(job(**FIELDS[field](f"{uri}/" if field == "output" else uri)))


def test_masks_lie_with_the_images_unless_said_otherwise(load):
    fields = {"mask": "s3://acme/photos/mask.png"}
    load({"acme": {"images": ACME["images"]}}).check_job(job(**fields))
    with pytest.raises(AccessDenied):
        load({"acme": {"images": ACME["images"], "masks": []}}).check_job(job(**fields))


def test_a_tenant_of_no_member_gets_nothing(load):
    for fields in ({}, {"image": f"{STORE}/outputs/rival/b/a.png"}):
        with pytest.raises(AccessDenied, match="'rival' is not served"):
            load({"acme": ACME}).check_job(job(tenant="rival", **fields))
    with pytest.raises(AccessDenied):
        load({"acme": {}}).check_job(job())


@pytest.mark.parametrize(
    "content", [None, {"acme": {"images": ["s3://farm-bucket/"], "outputs": ["s3://farm-bucket/"]}}]
)
def test_the_farms_records_are_out_of_reach_though_their_bucket_is_allowed(load, content):
    tenants = load(content)
    own = f"{STORE}/outputs/acme/b/"
    tenants.check_job(job(image=own + "a.png", output=own))  # one job's picture may be the next one's image
    for area in RECORDS:
        for place in (f"{STORE}/{area}/", f"{STORE}/{area}/rival/b/", f"{STORE}/{area}/acme-2/b/"):
            with pytest.raises(AccessDenied):
                tenants.check_job(job(image=own + "a.png", output=place))
            with pytest.raises(AccessDenied):
                tenants.check_job(job(image=place + "a.png"))
        if area != "outputs":
            with pytest.raises(AccessDenied):
                tenants.check_job(job(image=own + "a.png", output=f"{STORE}/{area}/acme/b/"))


def test_the_records_are_all_that_keys_names():
    assert set(re.findall(r"^    (\w+)/<(?:tenant>/|model>\.)", keys.__doc__, re.MULTILINE)) == set(RECORDS)
    for uri in (keys.specs(STORE), keys.result(STORE, "t", "b", "j", 0), keys.output(STORE, job(), "b", 0)):
        assert uri.removeprefix(STORE + "/").split("/")[0] in RECORDS


def test_without_a_file_the_farms_bucket_is_open_to_every_tenant(load, tmp_path):
    tenants = load(None)
    tenants.check_job(job(image="s3://farm-bucket/a.png", output="s3://farm-bucket/out/", tenant="anyone"))
    with pytest.raises(AccessDenied):
        tenants.check_job(job(image="s3://another/a.png"))
    local = load(None, store=f"file://{tmp_path}/store")
    local.check_job(job(image=f"file://{tmp_path}/store/a.png"))
    with pytest.raises(AccessDenied):
        local.check_job(job(image=f"file://{tmp_path}/store-2/a.png"))
    assert (tenants.policy("anyone").weight, tenants.policy("anyone").max_queued) == (1.0, 0)


def test_a_local_farm_has_further_folders_and_sees_through_its_own_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    settings = load_settings(store=f"file://{tmp_path}/link", local_roots=(f"{tmp_path}/photos",))
    tenants = Tenants.load(settings)
    for folder in ("real", "link", "photos"):
        tenants.check_job(job(image=f"file://{tmp_path}/{folder}/a.png"))
    for folder in ("real", "link"):
        with pytest.raises(AccessDenied):
            tenants.check_job(job(image=f"file://{tmp_path}/{folder}/specs/acme/b/a.png"))


def test_another_kind_of_store_is_no_store_of_this_farm(load, tmp_path):
    with pytest.raises(UrlNotAllowed, match="lies in no store"):
        load(None).check_job(job(image="file:///etc/passwd"))
    with pytest.raises(UrlNotAllowed):
        load(None, store=f"file://{tmp_path}/store").check_job(job())


@given(st.text("ab./%2e\\-", max_size=12))
def test_no_spelling_leaves_a_prefix(tail):
    tenants = Tenants.load(load_settings(store=STORE))
    uri = f"{STORE}/outputs/acme/{tail}"
    try:
        check_uri("image", uri)
        tenants.check_job(job(image=uri))
    except InvalidInput:
        return
    parts = uri.removeprefix("s3://").split("/")
    assert not {"", ".", ".."} & set(parts) and parts[:4] == ["farm-bucket", "farm", "outputs", "acme"]


# Keys


@pytest.fixture
def signing(load, tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"n" * 32 + b"\n")
    monkeypatch.setenv("OLD_KEY", "o" * 40)
    sources = [{"file": str(tmp_path / "new")}, {"env": "OLD_KEY"}]
    return lambda *used: load({"acme": {**ACME, "keys": [sources[index] for index in used]}, "open": ACME})


def test_a_sealed_line_is_admitted_and_another_is_not(signing):
    tenants, line = signing(0, 1), dump_line(job())
    sealed = tenants.seal(line, tenant="acme", batch_id="b")
    assert tenants.admit(sealed, tenant="acme", batch_id="b") == job()
    assert tenants.admit(signing(1).seal(line, tenant="acme", batch_id="b"), tenant="acme", batch_id="b") == job()
    for wrong in (line, sealed.replace(b"photos", b"photoz"), tenants.seal(line, tenant="acme", batch_id="c")):
        with pytest.raises(SignatureInvalid):
            tenants.admit(wrong, tenant="acme", batch_id="b")
    with pytest.raises(SignatureInvalid):
        signing(1).admit(sealed, tenant="acme", batch_id="b")


def test_a_tenant_without_keys_needs_no_signature(signing):
    line = dump_line(job(tenant="open"))
    assert signing(0).seal(line, tenant="open", batch_id="b") == line
    assert signing(0).admit(line, tenant="open", batch_id="b").tenant == "open"


def test_what_is_admitted_is_checked_again(signing):
    tenants = signing(0)
    for fields, error in (
        ({"image": "s3://rival/a.png"}, AccessDenied),
        ({"image": "file:///a"}, UrlNotAllowed),
        ({"tenant": "open"}, AccessDenied),
    ):
        sealed = tenants.seal(dump_line(job(**fields)), tenant="acme", batch_id="b")
        with pytest.raises(error):
            tenants.admit(sealed, tenant="acme", batch_id="b")
    with pytest.raises(InvalidInput):
        tenants.admit(tenants.seal(b'{"image":7}', tenant="acme", batch_id="b"), tenant="acme", batch_id="b")


def test_keys_are_never_shown(signing):
    tenants = signing(0, 1)
    for text in (repr(tenants), repr(tenants.policies), repr(vars(tenants)), str(tenants.policy("acme"))):
        assert "nnnn" not in text and "oooo" not in text


def test_a_process_that_verifies_nothing_needs_no_key(load):
    content = {"acme": {"keys": [{"env": "NOT_THERE"}], "weight": 2.5, "max_queued": 7}}
    with pytest.raises(Misconfigured, match="NOT_THERE cannot be read"):
        load(content)
    policy = load(content, with_keys=False).policy("acme")
    assert (policy.weight, policy.max_queued) == (2.5, 7)


# The file


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ('{"a": {}, "a": {}}', "twice"),
        ("[]", "object"),
        ({"a/b": {}}, "not a name"),
        ({"a": {"imagse": []}}, "a.imagse"),
        ({"a": {"weight": 0}}, "a.weight"),
        ({"a": {"weight": "much"}}, "a.weight"),
        ({"a": {"max_queued": -1}}, "a.max_queued"),
        ({"a": {"images": ["s3://photos/acme"]}}, "a.images"),
        ({"a": {"images": ["s3://photos/../acme/"]}}, "a.images"),
        ({"a": {"images": ["https://photos/acme/"]}}, "a.images"),
        ({"a": {"keys": ["hush-hush"]}}, "a.keys.0"),
        ({"a": {"keys": [{"value": "hush-hush"}]}}, "a.keys.0"),
        ({"a": {"keys": [{}]}}, "a.keys.0"),
        ({"a": {"keys": [{"file": "/nowhere/at/all"}]}}, "/nowhere/at/all cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(load, content, told):
    with pytest.raises(Misconfigured, match=told) as caught:
        load(content)
    assert "hush" not in str(caught.value)


def test_a_short_key_and_a_file_that_is_not_there(load, tmp_path, monkeypatch):
    monkeypatch.setenv("SHORT", "hush-hush")
    with pytest.raises(Misconfigured, match="has 9 bytes") as caught:
        load({"a": {"keys": [{"env": "SHORT"}]}})
    assert "hush" not in str(caught.value)
    with pytest.raises(Misconfigured, match="none\\.json cannot be read"):
        Tenants.load(load_settings(store=STORE, tenants=tmp_path / "none.json"))


# The way to Redis

HERE = [
    "redis://127.0.0.1/0",
    "redis://:hush@localhost:7000/1",
    "redis://[::1]/0",
    "unix:///run/redis.sock",
    "redis://",
]
FAR = ["redis://:hush@redis.example/0", "redis://10.0.0.7:6379", "redis:///0?host=10.0.0.7"]


@pytest.mark.parametrize("url", [*HERE, "rediss://:hush@redis.example/0", "rediss://h/0?ssl_cert_reqs=required"])
def test_a_redis_that_may_be_spoken_to(url):
    check_redis_url(url, allow_plain=False)


@pytest.mark.parametrize(
    "url", [*FAR, "rediss://:hush@h/0?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=CERT_OPTIONAL"]
)
def test_a_redis_that_may_be_spoken_to_only_on_request(url):
    with pytest.raises(Misconfigured, match="FARM_ALLOW_PLAIN_REDIS=true") as caught:
        check_redis_url(url, allow_plain=False)
    assert "hush" not in str(caught.value)
    check_redis_url(url, allow_plain=True)


def test_a_redis_url_that_is_none():
    with pytest.raises(Misconfigured, match="cannot be read") as caught:
        check_redis_url("redis://:hush@[host/0", allow_plain=True)
    assert "hush" not in str(caught.value)


def test_settings_do_not_show_the_password():
    settings = load_settings(redis_url="redis://:hush@127.0.0.1/0", store=STORE)
    assert "hush" not in repr(settings) + str(settings)
    assert isinstance(settings, Settings) and settings.redis_url.endswith("127.0.0.1/0")
