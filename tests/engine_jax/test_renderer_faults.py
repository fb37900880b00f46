"""How a JAX worker's jobs end badly, what its warm-up keeps, and its devices; over networks that compile quickly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from farm.config import load_settings
from farm.errors import NsfwContent, Resource, WorkerFatal
from tests.engine import tiny_checkpoints
from tests.engine.renderer_bench import IMAGE, MASK, make_request, pixels, same
from tests.engine_jax.light_networks import lighten
from worker.engine.stopwatch import Work
from worker.jax_renderer import JaxRenderer

ROOT = Path(__file__).parents[2]


def make_light_renderer(folder: Path, *buckets: str) -> JaxRenderer:
    renderer = JaxRenderer(load_settings(model_path=folder, size_buckets=list(buckets)))
    lighten(renderer)
    return renderer


@pytest.fixture(scope="module")
def lent():
    return make_light_renderer(tiny_checkpoints.folder("inpaint"), "64x64")


@pytest.fixture
def renderer(lent):
    """`told` holds what on_broken was given."""
    lent.told, lent.broken = [], ""
    lent.on_broken = lent.told.append
    yield lent
    lent.broken = ""


def fail_at(renderer, stage, message, monkeypatch):
    def failing(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(renderer._programs, stage, failing)


@pytest.mark.parametrize("stage", ["latents", "denoise", "pictures"])
def test_a_job_that_is_too_large_for_the_memory_fails_alone(renderer, stage, monkeypatch):
    before = renderer.render(make_request())
    fail_at(renderer, stage, "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nMore of it.", monkeypatch)
    with pytest.raises(Resource, match=r"Out of memory allocating 99 bytes\.\)") as caught:
        renderer.render(make_request())
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not renderer.broken and not renderer.told and not renderer.rendering and not renderer._left
    assert same(renderer.render(make_request()), before)


def test_any_other_failure_of_the_device_ends_the_process(renderer, monkeypatch):
    fail_at(renderer, "denoise", "INTERNAL: the stream is gone", monkeypatch)
    with pytest.raises(WorkerFatal, match="the stream is gone"):
        renderer.render(make_request())
    assert renderer.told == [renderer.broken] and "the stream is gone" in renderer.broken
    assert not renderer.rendering
    monkeypatch.undo()
    with pytest.raises(WorkerFatal, match="the stream is gone"):  # nothing that comes out of it is to be trusted
        renderer.render(make_request())
    assert len(renderer.told) == 1


def test_a_flagged_picture_is_refused_as_such(tiny_checkpoint):
    renderer = make_light_renderer(tiny_checkpoint(safety_checker=True), "64x64")
    thresholds = renderer._host.safety_checker.concept_embeds_weights
    thresholds.fill_(2.0)  # a cosine is never above
    passed = renderer.render(make_request())
    assert np.ptp(pixels(passed)[0]) > 0
    thresholds.fill_(-2.0)
    with pytest.raises(NsfwContent):
        renderer.render(make_request())
    assert not renderer.broken and not renderer.rendering


def test_the_warm_up_keeps_what_each_size_took_once_compiled(monkeypatch):
    renderer = make_light_renderer(tiny_checkpoints.folder("inpaint"), "64x64", "64x128")
    took = {Work(64, 64, 2): 5.0, Work(64, 64, 1): 3.0, Work(64, 128, 2): 6.0, Work(64, 128, 1): 4.0}
    compiled = set()

    def timed(request, scheduler):
        rows = 2 if request.job.guidance_scale > 1 else 1
        work = Work(*request.image.size, rows)
        for stage in ("vae_encode", "denoise", "vae_decode"):
            renderer._pace.observe(stage, work, took[work] if work in compiled else 1000.0)
        compiled.add(work)

    monkeypatch.setattr(renderer, "_painted", timed)
    renderer.warm_up()
    assert compiled == took.keys()
    assert {work: renderer._pace.seconds("denoise", work) for work in took} == took
    for size, guidance, beside, step in (((64, 64), 7.5, 3, 5), ((64, 128), 1.0, 4, 4)):
        image, mask = IMAGE.resize(size), MASK.resize(size)
        request = make_request(image=image, mask=mask, guidance_scale=guidance, num_inference_steps=10)
        assert renderer.estimate_seconds(request) == 2 * beside + 10 * step


@pytest.mark.full  # another process takes ten seconds to import it all
def test_a_jobs_pictures_go_over_the_devices_and_are_those_of_one(renderer):
    """Three pictures on two devices, one of which has nothing left to paint in the second round."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.engine_jax.two_devices", str(tiny_checkpoints.folder("inpaint"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 2
    assert found["rounds"] == {"1": 1, "2": 1, "3": 2}
    assert found["steps_told"] == 2 * 3 and found["denoised"] == 3 * 3
    alone = [pixels(renderer.render(make_request(seed=seed)))[0] for seed in (5, 6, 7)]
    for mine, theirs in zip(alone, found["pictures"], strict=True):
        assert np.abs(mine.astype(int) - np.array(theirs)).max() <= 1
