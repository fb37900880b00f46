"""What a device does wrong, and what the worker makes of it: once more, a failure of the job, or the process' end."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from farm.errors import NsfwContent, Resource, WorkerFatal, from_foreign
from tests.engine.renderer_bench import after, apart, lora_asset, make_renderer, make_request, pixels
from worker.engine.errors import EngineError
from worker.engine.faults import Fault, fault_of
from worker.preemption import Preemption

SMALLER = "out of memory: rendered in smaller batches"
JOB = {"num_images_per_prompt": 3, "scheduler": "euler_ancestral", "guidance_scale": 5.0, "seed": 21}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint()


@pytest.fixture
def renderer(folder):
    """A worker of the test's own, whose networks it may break; `told` holds what on_broken was given."""
    made = make_renderer(folder)
    made.told = []
    made.on_broken = made.told.append
    return made


def shortage() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation.")


def limit_rows(model, name, rows, error, monkeypatch):
    """Make the network's method fail for more rows than `rows`; the rows it was given, for the record."""
    original, given = getattr(model, name), []

    def limited(sample, *rest, **named):
        given.append(len(sample))
        if len(sample) > rows:
            raise error()
        return original(sample, *rest, **named)

    monkeypatch.setattr(model, name, limited)
    return given


@pytest.mark.parametrize("error", [shortage, MemoryError], ids=["CUDA's", "Python's"])
@pytest.mark.parametrize("where", ["unet", "vae"])
def test_out_of_memory_is_rendered_in_smaller_batches(renderer, where, error, monkeypatch):
    asset = lora_asset(renderer)
    whole = renderer.render(make_request(loras=(asset,), **JOB))
    model, name, rows = {"unet": (renderer._pipe.unet, "forward", 2), "vae": (renderer._pipe.vae, "decode", 1)}[where]
    given = limit_rows(model, name, rows, error, monkeypatch)
    rendered = renderer.render(make_request(loras=(asset,), **JOB))
    assert max(given) == 3 * rows and given[-1] <= rows
    assert rendered.warnings == (SMALLER,)
    assert len(rendered.images) == 3 and apart(rendered, whole) <= 1
    monkeypatch.undo()
    again = renderer.render(make_request(loras=(asset,), **JOB))
    assert apart(again, whole) <= 1 and again.warnings == (), "what fits is known by now"
    assert not renderer.told


def test_what_began_in_smaller_batches_resumes_elsewhere(renderer, folder, monkeypatch):
    limit_rows(renderer._pipe.unet, "forward", 2, shortage, monkeypatch)
    whole = renderer.render(make_request(**JOB))
    with pytest.raises(Preemption) as caught:
        renderer.render(make_request(**JOB, preempted=after(2)))
    assert caught.value.step == 2
    rendered = make_renderer(folder).render(make_request(**JOB, resume=caught.value.state))
    assert apart(rendered, whole) <= 1 and rendered.warnings == ()


def test_no_room_for_one_row_is_the_jobs_failure_and_three_in_a_row_the_workers(renderer, monkeypatch):
    def out():
        limit_rows(renderer._pipe.unet, "forward", 0, shortage, monkeypatch)
        for _ in range(2):
            with pytest.raises(Resource, match="CUDA out of memory"):
                renderer.render(make_request())
        assert not renderer.broken

    out()
    monkeypatch.undo()
    renderer.render(make_request())  # one that succeeds in between: the count begins anew
    out()
    with pytest.raises(WorkerFatal, match="3 jobs in a row"):
        renderer.render(make_request())
    assert renderer.told == [renderer.broken] and "CUDA out of memory" in renderer.broken
    monkeypatch.undo()
    with pytest.raises(WorkerFatal):  # for good
        renderer.render(make_request())


def test_tensors_of_the_failed_attempt_are_gone_before_the_second(renderer, monkeypatch):
    alive, seen = [], []
    original = renderer._pipe.unet.forward

    def forward(sample, *rest, **named):
        if len(sample) > 2:
            alive.append(weakref.ref(sample))
            raise shortage()
        gc.collect()
        seen.append(alive[0]() is not None)
        return original(sample, *rest, **named)

    monkeypatch.setattr(renderer._pipe.unet, "forward", forward)
    renderer.render(make_request(**JOB))
    assert seen and not any(seen)


STICKY = {
    "illegal memory access": RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …"),
    "device-side assert": torch.AcceleratorError("CUDA error: device-side assert triggered"),
    "launch failure": torch.AcceleratorError("CUDA error: unspecified launch failure"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
}


@pytest.mark.parametrize("error", STICKY.values(), ids=STICKY.keys())
@pytest.mark.parametrize("stage", ["text", "swap", "decode"])
def test_a_device_that_failed_is_not_ready_first_and_then_ends_the_worker(renderer, error, stage, monkeypatch):
    def fail(*_, **__):
        raise error

    what = {
        "text": (renderer._pipe.text_encoder, "forward"),
        "swap": (renderer.engine.merger, "set_adapters"),
        "decode": (renderer._pipe.vae, "decode"),
    }[stage]
    monkeypatch.setattr(*what, fail)
    with pytest.raises(WorkerFatal, match="The device failed"):
        renderer.render(make_request())
    assert renderer.told == [renderer.broken] and "\n" not in renderer.broken
    monkeypatch.undo()
    with pytest.raises(WorkerFatal):
        renderer.render(make_request())


def test_what_tidying_up_after_the_failure_raises_does_not_hide_it():
    def failed():
        try:
            raise STICKY["device-side assert"]
        finally:
            raise KeyError("no such token")

    with pytest.raises(KeyError) as caught:
        failed()
    assert fault_of(caught.value) is Fault.STICKY


FAULTS = [
    (MemoryError(), Fault.MEMORY),
    (shortage(), Fault.MEMORY),
    (torch.AcceleratorError("CUDA error: out of memory"), Fault.MEMORY),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), Fault.MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Fault.MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), Fault.STICKY),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    (ValueError("CUDA error: said a user's file"), None),
]


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=[f"{type(e).__name__}: {e}"[:40] for e, _ in FAULTS])
def test_what_an_error_says_of_the_device(error, fault):
    assert fault_of(error) is fault


def fill(value):
    return lambda latents: torch.full((len(latents), 3, 64, 64), value)


PAINTED_WRONG = {
    "NaN latents": (
        "unet",
        "forward",
        lambda sample, *_, **__: torch.full_like(sample[:, :4], torch.nan),
        "NonFiniteOutput",
    ),
    "infinite picture": ("vae", "decode", fill(torch.inf), "NonFiniteOutput"),
    "NaN picture": ("vae", "decode", fill(torch.nan), "NonFiniteOutput"),
    "nothing at all": ("vae", "decode", fill(0.0), "BlackOutput"),
}


@pytest.mark.parametrize(("part", "name", "function", "code"), PAINTED_WRONG.values(), ids=PAINTED_WRONG.keys())
def test_what_is_no_picture_is_never_a_success(renderer, part, name, function, code, monkeypatch):
    monkeypatch.setattr(getattr(renderer._pipe, part), name, function)
    with pytest.raises(EngineError) as caught:
        renderer.render(make_request())
    assert from_foreign(caught.value).code == code
    monkeypatch.undo()
    assert renderer.render(make_request()).images and not renderer.broken


def test_one_zero_picture_among_good_ones_is_enough(renderer, monkeypatch):
    decode = renderer._pipe.vae.decode

    def second_lost(latents):
        pictures = decode(latents)
        pictures[1] = 0
        return pictures

    monkeypatch.setattr(renderer._pipe.vae, "decode", second_lost)
    with pytest.raises(EngineError) as caught:
        renderer.render(make_request(num_images_per_prompt=2))
    assert caught.value.code == "BlackOutput"


@pytest.mark.parametrize("depth", [-1.0, -1.7])
def test_a_black_picture_is_a_picture(renderer, depth, monkeypatch):
    """A black backdrop: the decoder says -1 or less everywhere, which is black and no fault."""
    monkeypatch.setattr(renderer._pipe.vae, "decode", fill(depth))
    (picture,) = pixels(renderer.render(make_request()))
    assert picture.max() == 0


def test_a_flagged_picture_is_refused_as_such(tiny_checkpoint, monkeypatch):
    renderer = make_renderer(tiny_checkpoint(safety_checker=True))
    checker = renderer._pipe.safety_checker

    def flag(clip_input, images):
        return torch.zeros_like(images), [True] * len(images)

    monkeypatch.setattr(checker, "forward", flag)
    with pytest.raises(NsfwContent):
        renderer.render(make_request())
    monkeypatch.setattr(checker, "forward", lambda clip_input, images: (images, [False] * len(images)))
    assert np.asarray(renderer.render(make_request()).images[0]).max() > 0
    assert isinstance(renderer.render(make_request()).images[0], Image.Image)
