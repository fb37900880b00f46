"""A whole farm: a real Redis, a real Celery worker with a real checkpoint, killed and misled on purpose."""

import json
import pickle
import re
import signal
import time
from io import BytesIO

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from farm.errors import IdempotencyConflict, JobFailed
from farm.schemas import InpaintJob
from farm.states import JobState
from producer.client import Client
from producer.embedded import EmbeddedFarm
from worker.demo.shipped import copy_model

ENVIRONMENT = {"FARM_SIZE_BUCKETS": '["64x64"]', "FARM_LEASE_SECONDS": "4", "OMP_NUM_THREADS": "1"}
LOOK = "FARM_HINT_LOOK_SECONDS"  # the dispatcher's, after a hint that may be lost


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Desk:
    """A producer's desk beside a running farm: one photo, one mask, the model's LoRAs."""

    def __init__(self, farm, root, loras):
        self.farm, self.root = farm, root
        self.client = Client(farm.settings)
        pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
        self.photo = Image.fromarray(pixels)
        mask = Image.new("L", (100, 80), 0)
        mask.paste(255, (20, 20, 60, 60))
        self.put("photo.png", png(self.photo))
        self.put("mask.png", png(mask))
        self.loras = [self.put(path.name, path.read_bytes()) for path in loras]

    def put(self, name, data):
        uri = f"{self.root}/{name}"
        self.client.store.put(uri, data, content_type="application/octet-stream", create_only=False)
        return uri

    def job(self, **fields):
        job = {"image": f"{self.root}/photo.png", "mask": f"{self.root}/mask.png", "num_inference_steps": 2}
        return InpaintJob(**{**job, **fields})

    def submit(self, idempotency_key=None, **fields):
        return self.client.submit(self.job(**fields), idempotency_key=idempotency_key)

    def metric(self, pattern):
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", self.farm.scrape(), re.MULTILINE))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    copy_model(folder)
    return folder


@pytest.fixture(scope="module")
def desk(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("farm")
    with EmbeddedFarm(folder, model_path=model / "checkpoint", environment={**ENVIRONMENT, LOOK: "3600"}) as farm:
        farm.wait_ready()
        yield Desk(farm, farm.settings.store, sorted((model / "loras").glob("*.safetensors")))


def test_a_job_with_a_lora_is_rendered_and_the_base_comes_back_bit_for_bit(desk):
    plain = desk.submit(custom_id="plain", seed=1).result(timeout=60)
    lora = desk.submit(custom_id="lora", seed=1, loras=[{"path": desk.loras[0]}]).result(timeout=60)
    again = desk.submit(custom_id="again", seed=1).result(timeout=60)
    assert plain.outputs[0].sha256 == again.outputs[0].sha256 != lora.outputs[0].sha256
    assert lora.lora_swap_seconds > 0
    assert lora.receipt.max_abs_diff_outside == plain.receipt.max_abs_diff_outside == 0
    assert {"lora", "vae_encode", "denoise", "vae_decode"} <= set(lora.timings)


def test_a_hint_starts_a_job_at_once(desk):
    handle = desk.submit(custom_id="quick")
    assert handle.result(timeout=60).attempt == 1  # there is no second look within an hour


def test_one_idempotency_key_renders_once(desk):
    before = desk.metric(r'farm_images_total\{model="sd15-inpaint"\}')
    first = desk.submit(idempotency_key="order-7", prompt="a table")
    second = desk.submit(idempotency_key="order-7", prompt="a table")
    assert first.id == second.id
    assert first.result(timeout=60) == second.result(timeout=60)
    third = desk.submit(idempotency_key="order-7", prompt="a table")
    assert third.status() is JobState.SUCCEEDED
    assert desk.metric(r'farm_images_total\{model="sd15-inpaint"\}') == before + 1
    with pytest.raises(IdempotencyConflict):
        desk.submit(idempotency_key="order-7", prompt="a chair")


def bad_loras(desk):
    wrong = {"unet.nowhere.lora_A.weight": np.zeros((4, 8), np.float32)}
    wrong["unet.nowhere.lora_B.weight"] = np.zeros((8, 4), np.float32)
    good = safetensors.numpy.load(desk.client.store.get(desk.loras[0], max_bytes=10**8).data)
    nan = {name: np.full_like(value, np.nan) for name, value in good.items()}
    return [
        ("pickle.ckpt", pickle.dumps({"a": 1}), "UnsafeWeightsFormat"),
        ("pickle.safetensors", pickle.dumps({"a": 1}, protocol=4), "UnsafeWeightsFormat"),
        ("short.safetensors", b"\x08", "LoraInvalid"),
        ("no-key.safetensors", safetensors.numpy.save(wrong), "LoraNoEffect"),
        ("nan.safetensors", safetensors.numpy.save(nan), "LoraNonFinite"),
    ]


def test_a_bad_lora_between_good_jobs_harms_nothing(desk):
    baseline = desk.submit(custom_id="base", seed=2, loras=[{"path": desk.loras[1]}]).result(timeout=60)
    for name, data, code in bad_loras(desk):
        path = desk.put(name, data)
        with pytest.raises(JobFailed) as caught:
            desk.submit(loras=[{"path": path}], seed=2).result(timeout=60)
        assert caught.value.result.error.code == code, name
        assert len(caught.value.result.error.message) > 20
        good = desk.submit(custom_id=f"after-{name}", seed=2, loras=[{"path": desk.loras[1]}]).result(timeout=60)
        assert good.outputs[0].sha256 == baseline.outputs[0].sha256


def test_a_word_of_an_embedding_is_known_to_its_job_alone(desk, model):
    width = json.loads((model / "checkpoint" / "text_encoder" / "config.json").read_text())["hidden_size"]
    rows = np.random.default_rng(3).normal(size=(2, width)).astype(np.float32)
    path = desk.put("brand.safetensors", safetensors.numpy.save({"<brand>": rows}))
    prompt = {"prompt": "a <brand> table", "seed": 5}
    plain = desk.submit(custom_id="no-word", **prompt).result(timeout=60)
    taught = desk.submit(custom_id="word", **prompt, embeddings=[{"path": path}]).result(timeout=60)
    after = desk.submit(custom_id="no-word-again", **prompt).result(timeout=60)
    assert plain.outputs[0].sha256 == after.outputs[0].sha256 != taught.outputs[0].sha256
    with pytest.raises(JobFailed, match="EmbeddingInvalid"):
        desk.submit(**prompt, embeddings=[{"path": desk.loras[0]}]).result(timeout=60)


def test_the_scheduler_of_a_job_reaches_the_pixels(desk):
    names = ("ddim", "ddpm", "dpmpp_2m_karras", "model")
    results = [desk.submit(custom_id=name, scheduler=name, seed=6).result(timeout=60) for name in names]
    hashes = [result.outputs[0].sha256 for result in results]
    assert len(set(hashes[:3])) == 3


def test_the_metrics_tell_what_happened(desk):
    desk.submit(custom_id="counted", loras=[{"path": desk.loras[2]}]).result(timeout=60)
    with pytest.raises(JobFailed):
        desk.submit(image=f"{desk.root}/none.png").result(timeout=60)
    assert desk.metric(r'farm_jobs_total\{error="",model="sd15-inpaint",status="succeeded"\}') >= 1
    assert desk.metric(r'farm_jobs_total\{error="InputNotFound",model="sd15-inpaint",status="failed"\}') >= 1
    assert desk.metric(r'farm_job_seconds_count\{model="sd15-inpaint",stage="denoise"\}') >= 1
    assert desk.metric(r"farm_lora_swap_seconds_count") >= 1
    assert desk.metric(r"farm_denoise_steps_total") >= 2
    assert desk.metric(r'farm_vram_bytes\{device="cpu",kind="allocated"\}') > 10**7


@pytest.fixture(scope="module")
def patient(desk):
    """The same farm; its dispatcher soon looks again after what a fault takes away."""
    desk.farm.stop_dispatcher()
    desk.farm.environment[LOOK] = "5"
    desk.farm.start_dispatcher()
    return desk


@pytest.fixture
def fragile(patient):
    """Of which the test may take the worker down: the next test begins with another."""
    if patient.farm.worker.exit_code is not None:
        patient.farm.start_worker()
        patient.farm.wait_ready()
    return patient


def running(handle, timeout=20):
    end = time.monotonic() + timeout
    while handle.status() is not JobState.RUNNING:
        assert time.monotonic() < end, f"the job is {handle.status()}"
        time.sleep(0.02)


def test_kill_9_in_the_middle_of_a_job_loses_nothing(fragile):
    handles = [fragile.submit(custom_id=f"job-{n}", num_inference_steps=60, seed=n) for n in range(3)]
    running(handles[0])
    time.sleep(0.2)
    fragile.farm.worker.kill()
    assert handles[0].peek() is None
    fragile.farm.start_worker()
    results = [handle.result(timeout=90) for handle in handles]
    assert [result.custom_id for result in results] == ["job-0", "job-1", "job-2"]
    assert results[0].attempt == 2
    batches = {handle.batch_id for handle in handles}
    stored = [info.uri for info in fragile.client.store.list(f"{fragile.root}/results/")]
    assert sum(any(batch in uri for batch in batches) for uri in stored) == len(batches) == 3


def test_a_worker_consumes_again_after_redis_was_away(fragile):
    handles = [fragile.submit(custom_id=f"job-{n}", num_inference_steps=40, seed=n) for n in range(5)]
    running(handles[0])
    fragile.farm.redis.process.kill()
    time.sleep(8)
    fragile.farm.redis.start()
    assert [handle.result(timeout=60).custom_id for handle in handles] == [f"job-{n}" for n in range(5)]


def test_sigterm_finishes_the_job_in_hand(fragile):
    handle = fragile.submit(num_inference_steps=40)
    running(handle)
    fragile.farm.worker.popen.send_signal(signal.SIGTERM)
    assert fragile.farm.worker.popen.wait(60) == 0
    assert handle.peek().status is JobState.SUCCEEDED


@pytest.mark.parametrize("scheduler", [pytest.param("ddim", marks=pytest.mark.full), "ddpm"])  # ddpm draws noise, too
def test_a_preempted_job_goes_on_at_its_step_to_the_same_bits(model, tmp_path, scheduler):
    environment = {**ENVIRONMENT, "FARM_DRAIN_SECONDS": "0", "FARM_LEASE_SECONDS": "30"}
    with EmbeddedFarm(tmp_path, model_path=model / "checkpoint", environment=environment) as farm:
        farm.wait_ready()
        desk = Desk(farm, farm.settings.store, [])
        fields = {"num_inference_steps": 30, "seed": 3, "scheduler": scheduler}
        whole = desk.submit(custom_id="whole", **fields).result(timeout=90)
        handle = desk.submit(custom_id="cut", **fields)
        running(handle)
        time.sleep(0.4 * whole.timings["denoise"])
        farm.worker.popen.send_signal(signal.SIGTERM)
        assert farm.worker.popen.wait(20) == 0
        saved = list(desk.client.store.list(f"{desk.root}/states/"))
        assert len(saved) == 1 and handle.peek() is None
        farm.start_worker()
        result = handle.result(timeout=90)
        assert result.outputs[0].sha256 == whole.outputs[0].sha256
        assert result.attempt == 1 and not result.warnings
        assert 0 < desk.metric("farm_denoise_steps_total") < 30  # of the second worker, which made the rest alone


def test_the_same_job_over_s3(model, tmp_path, monkeypatch, s3_server, s3_bucket):
    for name, value in s3_server.environment().items():  # credentials come from the environment, the client's too
        monkeypatch.setenv(name, value)
    environment = {
        **ENVIRONMENT,
        **s3_server.environment(),
        "FARM_STORE": f"s3://{s3_bucket}/farm",
    }
    with EmbeddedFarm(tmp_path, model_path=model / "checkpoint", environment=environment) as farm:
        farm.wait_ready()
        desk = Desk(farm, f"s3://{s3_bucket}/in", sorted((model / "loras").glob("*.safetensors")))
        result = desk.submit(loras=[{"path": desk.loras[0]}]).result(timeout=60)
        assert result.outputs[0].uri.startswith(f"s3://{s3_bucket}/farm/outputs/")
        out = Image.open(BytesIO(desk.client.store.get(result.outputs[0].uri, max_bytes=10**7).data)).convert("RGB")
        assert out.getpixel((0, 0)) == desk.photo.getpixel((0, 0))
        assert result.receipt.max_abs_diff_outside == 0
