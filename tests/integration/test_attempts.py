"""What an attempt owes the next one: its lease while it works and no longer, and the truth of what it was given."""

import hashlib
import time
from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from farm.errors import StoreUnavailable
from farm.states import JobState
from tests.integration.test_runner import Bench, png
from worker import images
from worker.runner import Rendered


@pytest.fixture
def bench(local_store, redis_url, tmp_path):
    return Bench(local_store, f"file://{tmp_path / 'store'}", redis_url)


def test_a_crash_between_outputs_and_result_adopts_the_outputs(bench, monkeypatch):
    handle = bench.submit(output=f"{bench.root}/out/", custom_id="x")
    with monkeypatch.context() as crash:
        crash.setattr(bench.runner._verdicts, "commit", lambda *a, **k: (_ for _ in ()).throw(StoreUnavailable("gone")))
        assert bench.run(handle) is None
    written = bench.store.head(f"{bench.root}/out/x.png")
    time.sleep(0.1)
    assert bench.run(handle) is JobState.SUCCEEDED
    assert bench.store.head(f"{bench.root}/out/x.png") == written


def test_adopted_bytes_are_those_that_were_written_first(bench, monkeypatch):
    handle = bench.submit(output=f"{bench.root}/out/", custom_id="x")
    with monkeypatch.context() as crash:
        crash.setattr(bench.runner._verdicts, "commit", lambda *a, **k: (_ for _ in ()).throw(StoreUnavailable("gone")))
        bench.run(handle)
    blue = Image.new("RGB", (512, 512), (0, 0, 255))
    monkeypatch.setattr(bench.painter, "render", lambda request: Rendered([blue], {}))
    assert bench.run(handle) is JobState.SUCCEEDED
    stored = bench.store.get(f"{bench.root}/out/x.png", max_bytes=10**7).data
    assert handle.peek().outputs[0].sha256 == hashlib.sha256(stored).hexdigest()
    assert Image.open(BytesIO(stored)).getpixel((60, 35)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["photo.png", "mask.png"])
def test_an_input_that_changed_since_an_earlier_attempt_wrote_outputs_is_said(bench, monkeypatch, name):
    handle = bench.submit(output=f"{bench.root}/out/", custom_id="x")
    with monkeypatch.context() as crash:
        crash.setattr(bench.runner._verdicts, "commit", lambda *a, **k: (_ for _ in ()).throw(StoreUnavailable("gone")))
        assert bench.run(handle) is None
    other = {"photo.png": Image.new("RGB", (96, 64), (1, 2, 3)), "mask.png": Image.new("L", (96, 64), 255)}
    bench.put(name, png(other[name]))
    assert bench.run(handle) is JobState.FAILED
    error = handle.peek().error
    assert error.code == "InputChanged" and ("image" if name == "photo.png" else "mask") in error.message


def test_a_lora_that_changed_too_and_a_new_one_of_the_same_bytes_not(bench, monkeypatch):
    path = bench.put("l.safetensors", safetensors.numpy.save({"a": np.zeros(2, np.float32)}))
    states = []
    for bytes_of in (1, 0):
        handle = bench.submit(custom_id=f"x{bytes_of}", loras=[{"path": path}])
        with monkeypatch.context() as crash:
            crash.setattr(bench.runner._verdicts, "commit", Mock(side_effect=StoreUnavailable("gone")))
            bench.run(handle)
        bench.put("l.safetensors", safetensors.numpy.save({"a": np.full(2, bytes_of, np.float32)}))
        states.append(bench.run(handle))
        bench.put("l.safetensors", safetensors.numpy.save({"a": np.zeros(2, np.float32)}))
    assert states == [JobState.FAILED, JobState.SUCCEEDED]


def test_an_output_of_an_older_release_says_nothing_of_its_inputs_and_is_adopted(bench):
    handle = bench.submit(custom_id="x")
    uri = f"{bench.root}/outputs/default/{handle.batch_id}/x.png"
    told = {"job": handle.id, "generation": "0"}
    bench.store.put(uri, png(bench.photo), content_type="image/png", metadata=told, create_only=True)
    assert bench.run(handle) is JobState.SUCCEEDED
    assert handle.peek().receipt.max_abs_diff_outside == 0


def test_a_job_that_waits_in_a_busy_engine_keeps_its_lease(bench):
    handle = bench.submit()

    def wait(request):
        for _ in range(35):  # longer than the lease, and never a step of its own
            time.sleep(0.1)
            bench.painter.engine_progress += 1
        request.on_step()

    bench.painter.before = wait
    assert bench.run(handle) is JobState.SUCCEEDED


@pytest.mark.parametrize("stage", ["decode", "encode", "receipt"])
def test_a_stage_that_tells_no_progress_keeps_its_lease(bench, monkeypatch, stage):
    handle, outcomes, work = bench.submit(), [], getattr(images, stage)

    def slow(*arguments, **options):
        for _ in range(2):
            time.sleep(1.7)  # together longer than the lease
            outcomes.append(bench.ledger.claim([handle._ref], lease_seconds=30)[0].outcome)
        return work(*arguments, **options)

    monkeypatch.setattr(images, stage, slow)
    assert bench.run(handle) is JobState.SUCCEEDED
    assert outcomes == ["busy", "busy"]
    assert handle.peek().attempt == 1


def test_but_not_for_longer_than_a_stage_may_take(local_store, redis_url, tmp_path, monkeypatch):
    bench = Bench(local_store, f"file://{tmp_path / 'store'}", redis_url, stage_seconds=0.2)
    handle, outcomes = bench.submit(), []

    def hang(*arguments, **options):
        time.sleep(4)
        outcomes.append(bench.ledger.claim([handle._ref], lease_seconds=30)[0].outcome)
        raise StoreUnavailable("over at last")

    monkeypatch.setattr(images, "decode", hang)
    assert bench.run(handle) is None
    assert outcomes == ["claimed"]


def test_a_job_that_hangs_loses_its_lease(bench):
    handle = bench.submit()
    lost = []

    def hang(request):
        time.sleep(3.5)
        lost.append(bench.ledger.claim([handle._ref], lease_seconds=30)[0].outcome)
        time.sleep(1)

    bench.painter.before = hang
    bench.run(handle)
    assert lost == ["claimed"]
