"""Every row of the bad-input table: its exact code, nothing stored as success, and the next good job is rendered."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm import keys
from farm.config import load_settings
from farm.errors import FarmError
from farm.logs import JsonFormatter
from farm.queue import Hints, make_app, read_hint
from farm.schemas import BatchFooter, InpaintJob
from farm.shards import Shelf
from farm.states import JobState
from farm.storage import ObjectInfo, S3Settings, StoredObject
from farm.storage.local import LocalStore
from farm.storage.s3 import S3Store
from producer.client import Client
from tests.faults.bad_inputs import ACTS, MESSAGES, ROWS, Act, Line, Message, Row
from tests.faults.bad_inputs.bench import TENANT, Bench, Painter, saved, spec
from tests.faults.bad_inputs.places import KEY
from tests.faults.bad_inputs.table import README, rendered
from tests.faults.fleet import Child
from tests.servers import s3
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tests.servers.scripted import Answer, scripted


@pytest.fixture(scope="module")
def painter_bench(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Bench:
    folder = tmp_path_factory.mktemp("store")
    place = f"file://{folder}"
    return Bench(LocalStore(folder), Painter(), inputs=f"{place}/in", redis_url=redis_server.url, root=place)


@pytest.fixture(scope="module")
def model_bench(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Bench:
    """With a real model, small: weights are matched to it."""
    from tests.engine import tiny_checkpoints  # seconds of imports, and only for who runs these rows
    from worker.renderer import WarmRenderer

    folder = tmp_path_factory.mktemp("store")
    place = f"file://{folder}"
    settings = load_settings(model_path=tiny_checkpoints.folder("inpaint"), device="cpu", size_buckets=["64x64"])
    return Bench(
        LocalStore(folder), WarmRenderer(settings), inputs=f"{place}/in", redis_url=redis_server.url, root=place,
        model_path=settings.model_path,
    )  # fmt: skip


class OddStore(S3Store):
    """A real server, but what lies below "changing/" changes after each look, and "endless/" is another server's."""

    endless: S3Store

    def head(self, uri: str) -> ObjectInfo:
        info = super().head(uri)
        if "/changing/" in uri:
            self.put(uri, uuid.uuid4().bytes, content_type="x/y", create_only=False)
        return info

    def get(self, uri: str, **options: Any) -> StoredObject:
        return self.endless.get(uri, **options) if "/endless/" in uri else super().get(uri, **options)


def _endless() -> Iterator[bytes]:
    while True:
        yield b"1" * 65536


@pytest.fixture(scope="module")
def buckets_bench(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, s3_server: S3Server
) -> Iterator[Bench]:
    """On S3, with two tenants, who have keys."""
    folder, mark = tmp_path_factory.mktemp("tenants"), uuid.uuid4().hex[:8]
    for bucket in (f"farm-{mark}", f"in-{mark}", f"foreign-{mark}"):
        s3_server.client.create_bucket(Bucket=bucket)
    if not s3.why_moto():  # moto closes no bucket to anybody
        s3_server.as_user(f"stranger-{mark}").client.create_bucket(Bucket=f"closed-{mark}")
    own, rival = f"s3://in-{mark}/acme/", f"s3://in-{mark}/rival/"
    places = {
        "rival": rival, "foreign": f"s3://foreign-{mark}/", "sibling": f"s3://in-{mark}/acme-2/",
        "closed": f"s3://closed-{mark}/", "nowhere": f"s3://nowhere-{mark}/", "outputs": f"{own}out/",
        "changing": f"{own}changing/", "endless": f"{own}endless/", "taken": "taken",
    }  # fmt: skip
    (folder / "acme.key").write_bytes(KEY)
    (folder / "rival.key").write_bytes(b"r" * 32)
    policy = {"images": [own, places["closed"], places["nowhere"]], "loras": [own], "outputs": [places["outputs"]]}
    tenants = {
        "acme": {**policy, "keys": [{"file": str(folder / "acme.key")}]},
        "rival": {"images": [rival], "keys": [{"file": str(folder / "rival.key")}]},
    }
    (folder / "tenants.json").write_bytes(spec(tenants))
    store = OddStore(s3_server.settings())
    with scripted(lambda _: Answer(200, {}, _endless())) as url:
        store.endless = S3Store(S3Settings(endpoint_url=url, access_key="k", secret_key="s", path_style=True))
        bench = Bench(
            store, Painter(), inputs=own.rstrip("/"), redis_url=redis_server.url, root=f"s3://farm-{mark}/farm",
            tenants=folder / "tenants.json", **places,
        )  # fmt: skip
        for uri in (f"{rival}photo.png", f"{places['foreign']}a.png", f"{places['sibling']}a.png"):
            store.put(uri, saved(bench.photo), content_type="image/png", create_only=False)
        bench.put(b"somebody's", "out/taken.png")
        bench.put(b"first", "changing/a.safetensors")
        yield bench


def good(bench: Bench) -> str:
    """Renders the good job; its picture's hash."""
    ref = bench.submit(bench.fields())
    bench.run([ref])
    result = bench.result(ref)
    assert result.status is JobState.SUCCEEDED, result.error
    return result.outputs[0].sha256


BASELINES: dict[int, str] = {}


@pytest.mark.parametrize("row", [row for rows in ROWS.values() for row in rows], ids=lambda row: row.what)
def test_a_row(row: Row, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    if row.code == "InputForbidden" and s3.why_moto():
        return  # moto forbids nothing; the run's header says so
    bench: Bench = request.getfixturevalue(f"{row.bench}_bench")
    baseline = BASELINES.setdefault(id(bench), "") or good(bench)
    BASELINES[id(bench)] = baseline
    made, before = row.make(bench), bench.outputs()
    if isinstance(made, bytes):
        ref = bench.smuggle(made, seal=not isinstance(made, Line))
    else:
        fields = bench.fields(**made)
        try:
            ref = bench.submit(fields)
        except FarmError as refused:
            assert (refused.code, row.early) == (row.code, True), refused
            ref = bench.smuggle(spec(fields))
        else:
            assert not row.early, "the client let it through"
    with caplog.at_level(logging.INFO):
        bench.run([ref])
    result = bench.result(ref)
    if row.code:
        assert result.error is not None, "it succeeded"
        assert (result.error.code, result.status) == (row.code, JobState.FAILED), result.error.message
        assert result.outputs == () and bench.outputs() == before
        assert 20 < len(result.error.message) < 600 and result.error.message.isprintable()
        assert "secret" not in result.error.message
    else:
        assert result.status is JobState.SUCCEEDED, result.error
        assert result.receipt is not None and result.receipt.max_abs_diff_outside == 0
        assert row.warning in " ".join(result.warnings) and bool(row.warning) == bool(result.warnings)
        assert row.logged in caplog.text
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert good(bench) == baseline


def test_a_refusal_does_not_tell_whether_it_exists(buckets_bench: Bench) -> None:
    told = []
    for name in ("photo.png", "none.png"):
        with pytest.raises(FarmError) as caught:
            buckets_bench.submit(buckets_bench.fields(image=buckets_bench.places["rival"] + name))
        told.append(caught.value.message.replace(name, ""))
    assert told[0] == told[1]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.what)
def test_an_act(act: Act, painter_bench: Bench) -> None:
    with pytest.raises(FarmError) as caught:
        act.do(painter_bench)
    assert caught.value.code == act.code and len(caught.value.message) > 20
    good(painter_bench)


# A shard that our client did not write


LINES = (
    b"rubbish",
    b"[1]",
    b"{}",
    b"[" * 30_000,
    b'{"custom_id":{"a":1}}',
    b'{"custom_id":"a","model":"a:b/../\\n"}',
    b'{"custom_id":"b","model":7}',
    b'{"custom_id":"c","priority":"high"}',
    b'{"custom_id":"d","priority":1e308}',
    b'{"custom_id":"e",\r"image":7}',
    b'{"custom_id":"f"}',
)


def test_lines_of_rubbish_in_a_shard_are_refused_one_by_one_and_hold_up_nobody(painter_bench: Bench) -> None:
    bench, batch = painter_bench, uuid.uuid4().hex
    data = b"".join(line + b"\n" for line in (*LINES, spec(bench.fields(custom_id="good"))))
    told = {"tenant": TENANT, "batch_id": batch, "model": bench.settings.model}
    footer = BatchFooter(**told, jobs=len(LINES) + 1, shards=1, priority=50)
    for uri, body in (
        (keys.spec_shard(bench.settings.store, TENANT, batch, 0), data),
        (keys.batch_footer(bench.settings.store, TENANT, batch), footer.to_json()),
    ):
        bench.store.put(uri, body, content_type="x/y", create_only=True)
    refs = Shelf(bench.store, bench.settings.store).refs(TENANT, batch, 0)
    jobs = [[ref.job_id, ref.shard, ref.offset, ref.length, ref.generation, ref.priority] for ref in refs]
    assert read_hint({**told, "jobs": jobs}) == refs  # so the dispatcher can index and hint them all
    assert len({ref.job_id for ref in refs}) == len(LINES) + 1
    bench.run(refs)
    *bad, last = [bench.result(ref) for ref in refs]
    assert all(result.error is not None and not result.outputs for result in bad)
    assert last.status is JobState.SUCCEEDED


# Messages


class Post:
    """A real Celery worker on a Redis of its own, started again when a message ends it."""

    def __init__(self, folder: Path, redis: RedisServer):
        store = f"file://{folder / 'store'}"
        self.settings = load_settings(redis_url=redis.url, store=store, size_buckets=["64x64"])
        (folder / "events").mkdir()
        self.client, self.redis = Client(self.settings), redis.client()
        self._hints = Hints(make_app(self.settings))
        environment = {
            "FARM_REDIS_URL": redis.url, "FARM_STORE": store, "FARM_SIZE_BUCKETS": '["64x64"]',
            "FARM_METRICS_PORT": "0", "NOOP_EVENTS": str(folder / "events"), "NOOP_SECONDS": "0.001-0.01",
            "FARM_METRICS_HOST": "127.0.0.1",
        }  # fmt: skip
        self.worker = Child("worker", [sys.executable, "-m", "tests.faults.noop_worker"], folder, environment)
        self.image = f"{store}/photo.png"
        self.client.store.put(
            self.image, saved(Image.new("L", (64, 64), 255)), content_type="image/png", create_only=False
        )

    def good(self, seconds: float = 40.0) -> JobState:
        """The end of a good job that is hinted now."""
        job = InpaintJob(tenant=TENANT, image=self.image, mask=self.image, num_inference_steps=1)
        handle = self.client.submit(job.model_copy(update={"custom_id": uuid.uuid4().hex}))
        self._hints.publish([handle._ref])
        end = time.monotonic() + seconds
        while (result := handle.peek()) is None:
            assert time.monotonic() < end, self.worker.log()[-3000:]
            self.worker._quick = 0
            self.worker.tick(restart=True)
            time.sleep(0.02)
        return result.status

    def peak_bytes(self) -> int:
        """The most memory that the worker has had."""
        assert self.worker.process is not None
        status = Path(f"/proc/{self.worker.process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def left(self) -> int:
        """Messages that wait or are unacknowledged."""
        queue = f"farm.{self.settings.model}"
        return int(self.redis.llen(queue)) + int(self.redis.hlen("unacked"))


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    folder = tmp_path_factory.mktemp("post")
    with RedisServer(folder / "redis") as redis:
        there = Post(folder, redis)
        try:
            yield there
        finally:
            if there.worker.process is not None:
                there.worker.process.kill()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.what)
def test_a_message(message: Message, post: Post) -> None:
    post.redis.flushall()  # what an earlier row may have left
    assert post.good() is JobState.SUCCEEDED
    message.put(post.redis, f"farm.{post.settings.model}")
    assert post.good() is JobState.SUCCEEDED
    end = time.monotonic() + 10
    while post.left() and time.monotonic() < end:
        time.sleep(0.02)
    assert post.left() == 0, "it was not dropped"
    assert 99 not in post.worker.exits, "it was run"
    assert post.peak_bytes() < 300_000_000


# The table


def test_the_readme_shows_the_rows_as_they_are() -> None:
    text = README.read_text()
    assert rendered(text) == text, "run `python -m tests.faults.bad_inputs`"


def test_every_row_is_named_once() -> None:
    names = [row.what for rows in ROWS.values() for row in rows] + [row.what for row in (*ACTS, *MESSAGES)]
    assert len(set(names)) == len(names)
