"""The runner's path over a real Redis and a real store; only the model is a painter that fills with one colour."""

import threading
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from farm.config import load_settings
from farm.errors import StoreUnavailable
from farm.ledger import Ledger, connect
from farm.schemas import InpaintJob
from farm.states import JobState
from producer.client import Client
from tests.unit.picture_files import saved
from worker.runner import Rendered, Runner


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Painter:
    """A renderer that paints red; `before` runs first and may raise."""

    device, checkpoint_sha256 = "cpu", "0" * 64

    def __init__(self):
        self.rendered = self.engine_progress = 0
        self.before = lambda request: None

    def progress(self):
        return self.engine_progress

    def estimate_seconds(self, request):
        return 1.0

    def read_lora(self, data):
        return data

    read_embedding = read_ip_adapter = read_lora

    def render(self, request):
        self.before(request)
        for _ in range(request.job.num_inference_steps):
            request.on_step()
        self.rendered += 1
        count = request.job.num_images_per_prompt
        return Rendered([Image.new("RGB", request.image.size, (255, 0, 0))] * count, {"denoise": 0.01})


class Bench:
    """A client, a worker's runner, and a store with one photo and one mask."""

    def __init__(self, store, root, redis_url, **settings):
        self.settings = load_settings(redis_url=redis_url, store=root, lease_seconds=2, **settings)
        self.store, self.root = store, root
        self.client = Client(self.settings, store=store)
        self.ledger = Ledger(connect(redis_url))
        self.painter = Painter()
        self.runner = Runner(self.settings, store, self.ledger, self.painter)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        self.photo = Image.fromarray(pixels)
        mask = Image.new("L", (96, 64), 0)
        mask.paste(255, (40, 20, 80, 50))
        self.put("photo.png", png(self.photo))
        self.put("mask.png", png(mask))

    def uri(self, name):
        return f"{self.root}/{name}"

    def put(self, name, data):
        self.store.put(self.uri(name), data, content_type="application/octet-stream", create_only=False)
        return self.uri(name)

    def job(self, **fields):
        return InpaintJob(**{"image": self.uri("photo.png"), "mask": self.uri("mask.png"), **fields})

    def submit(self, **fields):
        return self.client.submit(self.job(**fields))

    def run(self, handle):
        return self.runner.run([handle._ref]).get(handle.id)


@pytest.fixture
def bench(local_store, redis_url, tmp_path):
    return Bench(local_store, f"file://{tmp_path / 'store'}", redis_url)


def test_a_job_succeeds_and_its_result_says_how(bench):
    handle = bench.submit(custom_id="sku-1", seed=7, num_images_per_prompt=2, metadata={"shop": "a"})
    assert handle.status() is JobState.QUEUED
    assert bench.run(handle) is JobState.SUCCEEDED
    result = handle.result(timeout=1)
    assert handle.status() is JobState.SUCCEEDED
    assert (result.custom_id, result.seed, result.attempt, result.metadata) == ("sku-1", 7, 1, {"shop": "a"})
    assert [output.seed for output in result.outputs] == [7, 8]
    assert [output.uri.rsplit("/", 1)[1] for output in result.outputs] == ["sku-1.png", "sku-1-1.png"]
    assert result.receipt.max_abs_diff_outside == 0
    assert {"queue_wait", "fetch", "decode", "denoise", "encode", "store", "total"} <= set(result.timings)
    out = Image.open(BytesIO(bench.store.get(result.outputs[0].uri, max_bytes=10**7).data))
    assert out.getpixel((60, 35)) == (255, 0, 0)
    assert out.getpixel((5, 5)) == bench.photo.getpixel((5, 5))


def test_a_cut_out_needs_no_mask_and_keeps_its_depth_and_is_labelled(bench):
    """A job's own fields reach the pictures: transparency as the mask, an output of another format."""
    cutout = bench.photo.convert("RGBA")
    alpha = Image.new("L", cutout.size, 0)
    alpha.paste(255, (20, 20, 50, 40))
    cutout.putalpha(alpha)
    bench.put("cutout.png", png(cutout))
    handle = bench.submit(image=bench.uri("cutout.png"), mask=None, output_format="tiff", padding_mask_crop=None)
    assert bench.run(handle) is JobState.SUCCEEDED
    result = handle.result(timeout=1)
    receipt = result.receipt
    assert (receipt.max_abs_diff_outside, receipt.pixels_outside, receipt.mode) == (0, 30 * 20, "RGBA")
    data = bench.store.get(result.outputs[0].uri, max_bytes=10**7).data
    assert b"compositeWithTrainedAlgorithmicMedia" in data
    out = Image.open(BytesIO(data))
    assert out.format == "TIFF" and out.getpixel((5, 5)) == (255, 0, 0, 255)
    assert out.getpixel((30, 30)) == (*bench.photo.getpixel((30, 30)), 255)


def test_what_the_format_cannot_hold_and_a_grown_paste_are_told_in_the_result(bench):
    bench.put("cmyk.tiff", saved(bench.photo.convert("CMYK"), "TIFF"))
    fields = {"image": bench.uri("cmyk.tiff"), "paste": "grown", "grow_mask": 4, "mask_blur": 0, "seed": 1}
    handle = bench.submit(**fields, fill_holes=True, padding_mask_crop=30)
    assert bench.run(handle) is JobState.SUCCEEDED
    result = handle.result(timeout=1)
    assert any("CMYK" in warning for warning in result.warnings)
    assert (result.receipt.max_abs_diff_outside, result.receipt.outside, result.receipt.mode) == (0, "grown", "RGB")
    assert result.receipt.pixels_outside < 96 * 64 - 40 * 30


def test_a_seed_is_made_from_the_job_and_recorded(bench):
    handle = bench.submit()
    bench.run(handle)
    assert isinstance(handle.result(timeout=1).seed, int)


def test_a_second_hint_of_a_finished_job_renders_nothing(bench):
    handle = bench.submit()
    bench.run(handle)
    assert bench.run(handle) is JobState.SUCCEEDED
    assert bench.painter.rendered == 1


def test_an_output_of_another_job_is_not_touched(bench):
    bench.put("out/x.png", b"somebody's")
    handle = bench.submit(output=f"{bench.root}/out/", custom_id="x")
    assert bench.run(handle) is JobState.FAILED
    assert handle.peek().error.code == "OutputExists"
    assert bench.store.get(f"{bench.root}/out/x.png", max_bytes=100).data == b"somebody's"


def test_a_store_that_is_not_mounted_ends_no_job(bench, tmp_path):
    handle = bench.submit()
    specs = tmp_path / "store" / "specs"
    specs.rename(tmp_path / "elsewhere")
    for _ in range(bench.settings.max_attempts + 1):
        assert bench.run(handle) is None
    assert handle.peek() is None
    (tmp_path / "elsewhere").rename(specs)
    assert bench.run(handle) is JobState.SUCCEEDED


def test_a_row_lost_while_the_job_runs_loses_nothing(bench):
    handle = bench.submit()

    def flushed(request):
        bench.ledger._redis.flushall()
        for _ in range(10):
            time.sleep(0.1)
            request.on_step()

    bench.painter.before = flushed
    assert bench.run(handle) is JobState.SUCCEEDED


def test_a_cancel_that_comes_second_tells_how_the_job_ended(bench, monkeypatch):
    handle = bench.submit()
    monkeypatch.setattr(bench.runner._ledger, "finish", lambda *a, **k: None)  # the worker dies before its index
    bench.run(handle)
    assert handle.status() is JobState.SUCCEEDED
    assert handle.cancel() is JobState.SUCCEEDED


def test_canceled_before_it_began(bench):
    handle = bench.submit()
    assert handle.cancel() is JobState.CANCELED
    assert bench.run(handle) is JobState.CANCELED
    assert bench.painter.rendered == 0
    assert handle.status() is JobState.CANCELED


def test_canceled_while_it_runs_stops_at_a_step(bench):
    handle = bench.submit(num_inference_steps=1000)
    started = threading.Event()

    def slow(request):
        started.set()
        for _ in range(200):
            time.sleep(0.05)
            request.on_step()

    bench.painter.before = slow
    thread = threading.Thread(target=bench.run, args=(handle,))
    thread.start()
    started.wait(5)
    assert handle.cancel() is JobState.CANCELED
    thread.join(5)
    assert not thread.is_alive()
    assert bench.painter.rendered == 0
    assert handle.peek().status is JobState.CANCELED


def test_cancel_after_the_end_tells_the_truth(bench):
    handle = bench.submit()
    bench.run(handle)
    assert handle.cancel() is JobState.SUCCEEDED


def test_a_transient_failure_is_tried_again_later(bench):
    handle = bench.submit()
    bench.painter.before = lambda request: (_ for _ in ()).throw(StoreUnavailable("503"))
    assert bench.run(handle) is None
    assert handle.status() is JobState.QUEUED
    bench.painter.before = lambda request: None
    assert bench.run(handle) is JobState.SUCCEEDED
    assert handle.peek().attempt == 2


def test_transient_failures_end_after_max_attempts(bench):
    handle = bench.submit()
    bench.painter.before = lambda request: (_ for _ in ()).throw(StoreUnavailable("503"))
    states = [bench.run(handle) for _ in range(bench.settings.max_attempts)]
    assert states == [None] * (bench.settings.max_attempts - 1) + [JobState.FAILED]
    assert handle.peek().error.code == "StoreUnavailable"


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(1), KeyError("x")], ids=lambda e: type(e).__name__)
def test_whatever_escapes_a_job_the_next_one_runs(bench, error):
    handle = bench.submit(custom_id="bad")
    bench.painter.before = lambda request: (_ for _ in ()).throw(error)
    while bench.run(handle) is None:
        pass
    assert handle.peek().status is JobState.FAILED
    bench.painter.before = lambda request: None
    assert bench.run(bench.submit(custom_id="good")) is JobState.SUCCEEDED


def test_a_job_that_takes_workers_down_is_given_up(bench):
    handle = bench.submit()
    for _ in range(bench.settings.max_crashes + 1):  # claimed by workers that go silent
        bench.ledger.claim([handle._ref], lease_seconds=0.01)
        time.sleep(0.03)
    assert bench.run(handle) is JobState.FAILED
    assert handle.peek().error.code == "WorkerCrashed"


def bad_inputs(bench):
    """What is wrong → the job's fields, and the code it must end with."""
    photo = png(bench.photo)
    return {
        "no such image": ({"image": bench.uri("none.png")}, "InputNotFound"),
        "no such mask": ({"mask": bench.uri("none.png")}, "InputNotFound"),
        "mask of another size": (
            {"mask": bench.put("small.png", png(Image.new("L", (16, 16), 255)))},
            "MaskSizeMismatch",
        ),
        "empty mask": ({"mask": bench.put("black.png", png(Image.new("L", (96, 64), 0)))}, "MaskEmpty"),
        "text for an image": ({"image": bench.put("a.txt", b"hello" * 20)}, "UnsupportedImageFormat"),
        "nothing for an image": ({"image": bench.put("zero", b"")}, "UnsupportedImageFormat"),
        "truncated image": ({"image": bench.put("cut.png", photo[: len(photo) // 2])}, "ImageTruncated"),
        "no such LoRA": ({"loras": [{"path": bench.uri("no.safetensors")}]}, "LoraNotFound"),
        "LoRA of another hash": (
            {"loras": [{"path": bench.put("l.safetensors", b"x"), "sha256": "0" * 64}]},
            "LoraHashMismatch",
        ),
        "deadline passed in the queue": ({"deadline": "PAST"}, "DeadlineExceeded"),
        "another model": ({"model": "sdxl"}, "UnknownModel"),
    }


def test_bad_inputs_end_failed_with_their_code_and_the_next_job_runs(bench):
    for name, (fields, code) in bad_inputs(bench).items():
        if fields.get("deadline") == "PAST":
            soon = np.datetime_as_string(np.datetime64("now") + np.timedelta64(1, "s"), timezone="UTC")
            handle = bench.submit(custom_id="late", deadline=soon)
            time.sleep(1.1)
        else:
            handle = bench.submit(**fields)
        bench.run(handle)
        result = handle.peek()
        assert result is not None and result.error is not None, name
        assert result.error.code == code, name
        assert result.outputs == (), name
        assert len(result.error.message) > 20, name
        assert bench.run(bench.submit(custom_id=f"after-{len(name)}-{code}")) is JobState.SUCCEEDED
