"""The policies that `helm/policies` ships, on real servers: each role can do its work and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from PIL import Image

from farm import keys
from farm.config import load_settings
from farm.errors import FarmError, InputForbidden, InputNotFound
from farm.ledger import Batches, JobRef, Ledger, Window, batch_scripts, scripts
from farm.queue import Hints, make_app
from farm.schemas import BatchFooter, InpaintJob
from farm.states import JobState
from farm.storage import ObjectStore, open_store
from producer.client import Client
from producer.process import Process, free_port
from tests.servers import s3
from tests.servers.guarded import POLICIES, ROLES, Guarded
from tests.servers.redis import server_binary
from tests.servers.s3 import S3Server
from tests.unit.picture_files import drawn, saved

# Redis


@pytest.fixture(params=["valkey", "redis-server"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guarded]:
    binary = "valkey" if s3.why_moto() else request.param  # Debian's packages are not here; the run's header says so
    server = Guarded(tmp_path, binary)
    yield server
    server.stop()


def refs(count: int, shard: int = 0) -> list[JobRef]:
    return [JobRef(uuid.uuid4().hex, "t", "b", "m", shard, 100 * n, 100) for n in range(count)]


def test_as_it_is_the_file_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "users.acl").write_text(
        (POLICIES / "redis-users.acl").read_text() + "user tester on >tester ~* &* +@all"
    )
    port = free_port()
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    process = Process([*command, "--aclfile", str(tmp_path / "users.acl")], tmp_path / "log")
    try:
        tester = redis.Redis(port=port, username="tester", password="tester", retry=None)
        process.wait_until(lambda: _pings(tester), 20)
        for role in ("default", *ROLES):
            for password in ("", role, "0" * 64, "\0" * 32):
                with pytest.raises(redis.AuthenticationError):
                    redis.Redis(port=port, username=role, password=password, retry=None).ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, retry=None).ping()
    finally:
        process.stop()


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_each_role_can_do_its_work(guarded: Guarded) -> None:
    sdk, worker, dispatcher = (guarded.client(role) for role in ROLES)
    one, some = refs(1, keys.SINGLE), refs(5)
    footer = BatchFooter(tenant="t", batch_id="b", jobs=5, shards=1, priority=50, model="m")
    options = {"window": 9, "limit": 9, "quantum": 9, "look_again_in": 1.0}

    def accept() -> None:
        Ledger(sdk).ping()
        sdk.info("memory")
        Batches(sdk).announce("t", "b", look_again_in=1.0, quota=9)
        Ledger(sdk).enqueue(one)
        Batches(sdk).open(footer, look_again_in=1.0)
        assert Ledger(sdk).state(one[0].job_id) is JobState.QUEUED
        assert Batches(sdk).record("t", "b") is not None

    def dispatch() -> list[JobRef]:
        window, batches = Window(dispatcher), Batches(dispatcher)
        batches.end_walk(batches.begin_walk())
        assert batches.epoch() and list(batches.unindexed()) == [("t", "b", "m")] and batches.live()
        assert batches.index_shard("t", "b", 0, some)
        window.set_weights({"t": 2.0})
        assert window.lead("me", seconds=5) and window.lead("me", seconds=5)
        window.take_due(limit=9, look_again_in=1.0)
        assert window.models() == ["m"]
        taken = window.take_ready("m", **options)
        assert window.depths("m").hinted == len(taken) == 6 and not window.holders("m")
        window.finished("m")
        window.wait(0.01)
        Hints(make_app(load_settings(redis_url=guarded.url("dispatcher"), model="m"))).publish(taken)
        return taken

    def work(taken: list[JobRef]) -> None:
        ledger = Ledger(worker)
        ledger.ping()
        ledger.give_back(taken[:1])
        owner = ledger.claim(taken[1:], lease_seconds=9)[0].owner
        assert ledger.beat(taken[1:], owner, lease_seconds=9)
        assert ledger.release(taken[1], owner, delay_seconds=0.0, charged=False, saved=True)
        assert ledger.release(taken[2], owner, delay_seconds=1.0, charged=True)
        ledger.finish([(ref, JobState.SUCCEEDED, 1.0) for ref in taken[3:]], owner=owner)

    def end() -> None:
        batches = Batches(sdk)
        assert batches.pause("t", "b", paused=True) and batches.pause("t", "b", paused=False) and batches.cancel("b")
        Ledger(sdk).finish([(one[0], JobState.CANCELED, 0.0)])
        Batches(dispatcher).close("t", "b")

    accept()
    work(dispatch())
    end()
    assert guarded.refusals() == set()


def commands_of(text: str) -> set[str]:
    """Redis' commands in a script, its share of the prelude's functions included."""
    functions = dict(re.findall(r"local function (\w+)\(.*?\)\n(.*?)\nend", scripts.PRELUDE, re.DOTALL))
    found, todo = {"time"}, [text]
    while todo:
        here = todo.pop()
        found |= {name.lower() for name in re.findall(r"redis\.call\('([A-Z]+)'", here)}
        called = [name for name in functions if re.search(rf"\b{name}\(", here)]
        todo += [functions.pop(name) for name in called]
    return found


SCRIPTS = {
    "sdk": ("ENQUEUE", "ANNOUNCE", "OPEN_BATCH", "PAUSE", "CANCEL", "UNCOUNT", "FINISH"),
    "worker": ("CLAIM", "BEAT", "RELEASE", "GIVE_BACK", "FINISH"),
    "dispatcher": ("ENQUEUE", "TAKE_DUE", "TAKE_READY", "INDEX_SHARD", "OPEN_BATCH", "CLOSE_BATCH", "END_WALK"),
}
TEXTS = {
    name: value
    for module in (scripts, batch_scripts)
    for name, value in inspect.getmembers(module)
    if re.fullmatch("[A-Z][A-Z_]+", name) and isinstance(value, str) and name != "PRELUDE"
}
CLIENT = {"ping", "eval", "evalsha", "script|load"}  # redis-py and its scripts
DIRECT = {  # what Ledger, Batches, Window and Client ask without a script
    "sdk": {"info", "hget", "hgetall"},
    "worker": set(),
    "dispatcher": {
        *("blpop", "smembers", "get", "zrange", "zcard", "zcount", "hget", "set", "pexpire", "del", "hset", "hgetall"),
    },
}
PUBLISH = {"lpush", "sadd", "smembers", "multi", "exec"}  # kombu: a queue is declared, bound, and written to
CONSUME = {  # kombu: taken, noted as unacked, acknowledged or put back, under a lock
    *("brpop", "llen", "lpush", "rpush", "sadd", "smembers", "zadd", "hset", "zrem", "hdel", "hget", "zrange"),
    *("multi", "exec", "watch", "unwatch", "set", "get", "del"),
}
CELERY = {"sdk": set(), "worker": CONSUME, "dispatcher": PUBLISH}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_has_a_command_that_the_code_does_not_use(role: str) -> None:
    used = CLIENT | DIRECT[role] | CELERY[role]
    used |= set().union(*(commands_of(TEXTS[name]) for name in SCRIPTS[role]))
    (line,) = (
        line for line in (POLICIES / "redis-users.acl").read_text().splitlines() if line.startswith(f"user {role} ")
    )
    assert set(re.findall(r"\+(\S+)", line)) == used, (
        f"it should end: -@all {' '.join(f'+{name}' for name in sorted(used))}"
    )


def test_every_script_is_some_roles() -> None:
    assert set(TEXTS) == set().union(*SCRIPTS.values())


# What would harm the farm or the server, as words; and what is another role's.
ATTACKS = """
FLUSHALL / FLUSHDB / CONFIG GET * / KEYS * / SCAN 0 / ACL LIST / SHUTDOWN NOSAVE / MONITOR / SAVE /
REPLICAOF h 1 / MIGRATE h 1 k 0 1 / CLIENT KILL TYPE normal / SELECT 1 / SCRIPT FLUSH / FUNCTION LIST / DUMP farm:due /
RENAME farm:due farm:x / GET elsewhere / HSET elsewhere a b / PUBLISH x y / SUBSCRIBE x
"""
OTHERS = {
    "sdk": """SET farm:epoch x / ZPOPMIN farm:ready:m:t / LPUSH farm.m hint / RPUSH farm.m hint / LPUSH farm:wake 1 /
        SMEMBERS _kombu.binding.farm.m / HGET unacked x""",
    "worker": "ZPOPMIN farm:ready:m:t / HGETALL farm:batch:b / INFO / BRPOP other 1 / BLPOP farm:wake 1",
    "dispatcher": "BRPOP farm.m 1 / HGET unacked x / DEL unacked / INFO / INCRBYFLOAT farm:pace:m 1",
}
SCRIPTED = (
    "return redis.call('FLUSHALL')",
    "return redis.call('HSET', 'elsewhere', 'a', 'b')",
    "return redis.pcall('KEYS', '*')",
)


def test_no_role_can_do_what_is_not_its_own(guarded: Guarded) -> None:
    for role in ROLES:
        client = guarded.client(role)
        acts = [act.split() for act in f"{ATTACKS} / {OTHERS[role]}".split("/")]
        acts += [["EVAL", text, "0"] for text in SCRIPTED]
        for act in acts:
            with pytest.raises(redis.ResponseError, match=r"(?i)no permission|ACL failure|can't (run|access)"):
                client.execute_command(*act)
        assert client.ping()


# S3


def bucket_policy(name: str, **values: str) -> str:
    """A policy as it is put on a bucket of radosgw, which knows no condition on If-None-Match, and here no TLS."""
    text = (POLICIES / name).read_text()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    policy = json.loads(text)
    policy["Statement"] = [part for part in policy["Statement"] if part["Sid"] not in ("CreateOnce", "TlsOnly")]
    return json.dumps(policy)


class Guardians:
    """The farm's bucket and a tenant's, under the policies; a store for each role, and the owner's."""

    def __init__(self, server: S3Server):
        suffix = uuid.uuid4().hex[:8]
        self.farm, self.photos, self._owner = f"farm-{suffix}", f"photos-{suffix}", server.store()
        self.users = {role: server.as_user(f"{role}-{suffix}") for role in ROLES}
        arns = {f"{role.upper()}_ARN": f"arn:aws:iam:::user/{role}-{suffix}" for role in ROLES}
        for bucket in (self.farm, self.photos):
            server.client.create_bucket(Bucket=bucket)
        here = {"BUCKET": self.farm, "PREFIX": "farm", "TENANT": "acme"}
        server.client.put_bucket_policy(Bucket=self.farm, Policy=bucket_policy("bucket-policy.json", **here, **arns))
        here = {"BUCKET": self.photos, "INPUTS": "in", "/OUTPUTS/": "/edited/"}
        policy = bucket_policy("tenant-bucket-policy.json", **here, **arns)
        server.client.put_bucket_policy(Bucket=self.photos, Policy=policy)
        self.root = f"s3://{self.farm}/farm"
        self.stores = {role: open_store(self.root, s3=user.settings()) for role, user in self.users.items()}

    def put(self, uri: str, data: bytes = b"x") -> str:
        self._owner.put(uri, data, content_type="x/y", create_only=False)
        return uri


@pytest.fixture(scope="module")
def guardians(s3_server: S3Server) -> Guardians | None:
    return None if s3.why_moto() else Guardians(s3_server)  # moto knows no users; the run's header says so


READ, CREATE, LIST, DELETE = "read", "create", "list", "delete"
ACTS: dict[str, Callable[[ObjectStore, str], object]] = {
    READ: lambda store, uri: (store.get(uri, max_bytes=9), store.head(uri)),
    CREATE: lambda store, uri: store.put(uri + uuid.uuid4().hex, b"x", content_type="x/y", create_only=True),
    LIST: lambda store, uri: list(store.list(uri.rpartition("/")[0] + "/")),
    DELETE: lambda store, uri: store.delete(uri),
}
# place → what each role may do there; nothing else
ALLOWED = {
    "specs/acme/b/00000.ndjson": {"sdk": {READ, CREATE}, "worker": {READ}, "dispatcher": {READ, LIST}},
    "results/acme/b/j.0.json": {"sdk": {READ, CREATE}, "worker": {READ, CREATE}, "dispatcher": {READ, LIST}},
    "summaries/acme/b.json": {"sdk": {READ}, "worker": set(), "dispatcher": {READ, CREATE, LIST}},
    "states/acme/b/j.0.safetensors": {"sdk": set(), "worker": {READ, CREATE}, "dispatcher": {LIST, DELETE}},
    "dead/acme/b/j.0.json": {"sdk": set(), "worker": {CREATE}, "dispatcher": {READ, LIST, DELETE}},
    "outputs/acme/b/a.png": {"sdk": {READ}, "worker": {READ, CREATE}, "dispatcher": {READ, LIST, DELETE}},
    "specs/rival/b/00000.ndjson": {"sdk": set(), "worker": {READ}, "dispatcher": {READ, LIST}},
    "results/rival/b/j.0.json": {"sdk": set(), "worker": {READ, CREATE}, "dispatcher": {READ, LIST}},
    "outputs/rival/b/a.png": {"sdk": set(), "worker": {READ, CREATE}, "dispatcher": {READ, LIST, DELETE}},
    "models/sd15-inpaint.json": {"sdk": {READ}, "worker": {CREATE}, "dispatcher": {LIST}},
    "probe-1": {"sdk": set(), "worker": set(), "dispatcher": {READ, CREATE, LIST, DELETE}},
    "../other/file": {"sdk": set(), "worker": set(), "dispatcher": set()},
    "photos:in/a.png": {"sdk": set(), "worker": {READ}, "dispatcher": set()},
    "photos:edited/a.png": {"sdk": set(), "worker": {READ, CREATE}, "dispatcher": set()},
    "photos:private/a.png": {"sdk": set(), "worker": set(), "dispatcher": set()},
}


def test_each_role_may_do_in_the_store_what_it_needs_and_nothing_else(guardians: Guardians | None) -> None:
    if guardians is None:
        return
    wrong = []
    for place, allowed in ALLOWED.items():
        uri = f"{guardians.root}/{place}".replace("/farm/../", "/")
        if place.startswith("photos:"):
            uri = f"s3://{guardians.photos}/{place.removeprefix('photos:')}"
        for role in ROLES:
            for act, do in ACTS.items():
                guardians.put(uri)
                try:
                    do(guardians.stores[role], uri)
                    did = True
                except (InputForbidden, InputNotFound):
                    did = False
                if did is not (act in allowed[role]):
                    wrong.append((role, act, place, did))
    assert wrong == []


def test_what_is_not_there_is_told_as_such_only_of_the_farms_own_records(guardians: Guardians | None) -> None:
    if guardians is None:
        return
    for role, uri in (
        ("sdk", f"{guardians.root}/results/acme/b/none.json"),
        ("worker", f"{guardians.root}/results/acme/b/none.json"),
        ("dispatcher", f"{guardians.root}/specs/acme/none/batch.json"),
    ):
        store = guardians.stores[role]
        told = "does not exist, or may not be read"
        with pytest.raises(InputNotFound, match=told):
            store.get(uri, max_bytes=9)
        with pytest.raises(InputNotFound, match=told):
            store.head(uri)
        with pytest.raises(InputNotFound, match=told):
            store.get_range(uri, 0, 1)
    with pytest.raises(InputForbidden, match="if it exists"):
        guardians.stores["worker"].get(f"s3://{guardians.photos}/in/none.png", max_bytes=9)


def test_create_once_and_tls_are_asked_for_where_the_store_can_tell() -> None:
    policy = json.loads((POLICIES / "bucket-policy.json").read_text())
    parts = {part["Sid"]: part for part in policy["Statement"]}
    once = parts["CreateOnce"]
    assert once["Effect"] == "Deny" and once["Condition"] == {"Null": {"s3:if-none-match": "true"}}
    written = {place for sid in ("SdkCreatesSpecsAndCancelsJobs", "WorkerWrites") for place in parts[sid]["Resource"]}
    covered = {place.split("/")[2] for place in once["Resource"]}
    assert {place.split("/")[2] for place in written} - covered == {"states", "models"}  # replaced
    actions = {action for part in policy["Statement"] if part["Effect"] == "Allow" for action in part["Action"]}
    assert actions == {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}


# Both: a farm


def test_a_farm_of_the_three_roles_does_its_work(guardians: Guardians | None, tmp_path: Path) -> None:
    if guardians is None:
        return
    server = Guarded(tmp_path, "valkey")
    tenants = tmp_path / "tenants.json"
    photos = f"s3://{guardians.photos}/in/"
    edited = f"s3://{guardians.photos}/edited/"
    (tmp_path / "key").write_bytes(os.urandom(32))
    policy = {"images": [photos], "outputs": [edited], "keys": [{"file": str(tmp_path / "key")}]}
    tenants.write_text(json.dumps({"acme": policy}))
    guardians.put(photos + "a.png", saved(drawn(size=(64, 64)), "PNG"))
    guardians.put(photos + "m.png", saved(Image.new("L", (64, 64), 255), "PNG"))
    processes = []

    def environment(role: str) -> dict[str, str]:
        own = {"FARM_REDIS_URL": server.url(role), "FARM_STORE": guardians.root, "FARM_TENANTS": str(tenants)}
        own |= {"FARM_METRICS_PORT": "0", "FARM_METRICS_HOST": "127.0.0.1", "FARM_SIZE_BUCKETS": '["64x64"]'}
        return {**os.environ, **guardians.users[role].environment(), **own, "NOOP_EVENTS": str(tmp_path)}

    try:
        for role, module in (("worker", ("tests.faults.noop_worker",)), ("dispatcher", ("producer", "dispatcher"))):
            command = [sys.executable, "-m", *module]
            processes.append(Process(command, tmp_path / f"{role}.log", environment(role)))
        settings = load_settings(redis_url=server.url("sdk"), store=guardians.root, tenants=tenants)
        client = Client(settings, store=guardians.stores["sdk"])
        fields = {"tenant": "acme", "image": photos + "a.png", "mask": photos + "m.png", "num_inference_steps": 1}
        single = client.submit(InpaintJob(**fields, custom_id="alone", output=edited))
        batch = client.submit_batch((InpaintJob(**fields, custom_id=f"n{n}") for n in range(3)), tenant="acme")
        try:
            assert single.result(timeout=60).outputs[0].uri == edited + "alone.png"
            summary = batch.wait(timeout=60)
        except FarmError as error:
            logs = "\n".join(process.tail() for process in processes)
            raise AssertionError(f"{error}\n{server.refusals()}\n{logs}") from error
        assert summary.counts[JobState.SUCCEEDED] == 3
        canceled = client.submit(InpaintJob(**fields, custom_id="late", prompt="hang"))
        assert canceled.cancel() is JobState.CANCELED
        assert server.refusals() == set()
    finally:
        for process in reversed(processes):
            process.stop(grace=1)
        server.stop()
