"""Requests as values: steps shared by different requests, saved in the middle, taken up elsewhere."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, generator
from tests.engine.pictures import hole, picture
from worker.engine import schedulers
from worker.engine.errors import InvalidParameter
from worker.engine.request import Request

KINDS = pytest.mark.parametrize("kind", ["inpaint", "plain"])


def arguments(**changes: Any) -> dict[str, Any]:
    seed = changes.pop("seed", 42)
    made = [generator(s) for s in seed] if isinstance(seed, list) else generator(seed)
    base = {
        "prompt": "a red cat",
        "image": picture(),
        "mask_image": hole(),
        "num_inference_steps": 4,
        "generator": made,
    }
    return {**base, **changes}


def with_scheduler(kind: str, name: str) -> Any:
    pipe = tiny_checkpoints.ours(kind)
    scheduler = schedulers.from_config(pipe.scheduler.config, _class_name=name)
    return type(pipe)(**{**pipe.components, "scheduler": scheduler})


def finished(pipe: Any, request: Request) -> torch.Tensor:
    while not request.done:
        (request,) = pipe.denoise_step([request])
    return request.latents


@KINDS
def test_step_by_step_is_the_call(kind: str) -> None:
    pipe = tiny_checkpoints.ours(kind)
    latents = finished(pipe, pipe.prepare_request(**arguments(strength=0.8, eta=0.5)))
    assert torch.equal(latents, pipe(**arguments(strength=0.8, eta=0.5), output_type="latent").images)


@KINDS
def test_different_requests_share_steps(kind: str) -> None:
    """Prompts, counts, schedules, guidance, seeds, starting points: each row is what it is alone."""
    pipe = tiny_checkpoints.ours(kind)
    calls = [
        {"seed": 1},
        {"seed": 2, "prompt": ["a dog", "a fish"], "guidance_scale": 3.0, "num_inference_steps": 7},
        {"seed": [3, 4, 5], "guidance_scale": 1.0, "num_images_per_prompt": 3, "eta": 1.0},
        {"seed": 6, "height": 32, "width": 48},
        {"seed": 7, "strength": 0.5, "num_inference_steps": 8},
        {"seed": 8, "prompt": None, "prompt_embeds": torch.ones(1, 40, 32)},
    ]
    alone = [finished(pipe, pipe.prepare_request(**arguments(**call))) for call in calls]
    running = dict(enumerate(pipe.prepare_request(**arguments(**call)) for call in calls[:4]))
    done: dict[int, torch.Tensor] = {}
    joined = False
    while running:
        stepped = dict(zip(running, pipe.denoise_step(list(running.values())), strict=True))
        running = {i: request for i, request in stepped.items() if not request.done}
        done |= {i: request.latents for i, request in stepped.items() if request.done}
        if not joined:  # two come in while the others are in the middle
            running |= {i: pipe.prepare_request(**arguments(**calls[i])) for i in (4, 5)}
            joined = True
    for i, latents in enumerate(alone):
        assert_same_latents(done[i], latents, 1e-5)


def test_a_forward_has_no_row_that_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, rows = tiny_checkpoints.ours("inpaint"), []
    forward = type(pipe.unet).forward

    def counted(self: Any, sample: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        rows.append(len(sample))
        return forward(self, sample, *rest, **named)

    monkeypatch.setattr(type(pipe.unet), "forward", counted)
    calls = [{"guidance_scale": 1.0}, {"guidance_scale": 5.0}, {"guidance_scale": 0.0, "num_images_per_prompt": 2}]
    pipe.denoise_step([pipe.prepare_request(**arguments(**call)) for call in calls])
    assert rows == [1 + 2 + 2], "one forward, and two rows only for the guided request"


SAVED: dict[str, dict[str, Any]] = {
    "plain call": {},
    "without guidance": {"guidance_scale": 1.0},
    "several": {"prompt": ["a dog", "a fish"], "seed": [5, 6], "strength": 0.8},
    "crop": {"image": picture(90, 70), "mask_image": hole(90, 70), "padding_mask_crop": 4},
    "eta": {"eta": 1.0},
}


@KINDS
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("changes", SAVED.values(), ids=SAVED.keys())
def test_a_saved_request_goes_on_to_the_same_bits(kind: str, scheduler: str, changes: dict[str, Any]) -> None:
    pipe = with_scheduler(kind, scheduler)
    request = pipe.prepare_request(**arguments(**changes))
    for _ in range(2):
        (request,) = pipe.denoise_step([request])
    blob = request.to_bytes()
    elsewhere = with_scheduler(kind, "DDIMScheduler")  # the request brings its scheduler along
    restored = Request.from_bytes(blob)
    assert restored.step_index == 2
    assert torch.equal(finished(elsewhere, restored), finished(pipe, request))


@pytest.mark.parametrize("kind", ["distilled", "asymmetric"])
def test_every_field_survives(kind: str) -> None:
    pipe = tiny_checkpoints.ours(kind)
    call = arguments(image=picture(90, 70), mask_image=hole(90, 70), padding_mask_crop=4, eta=0.5)
    request = pipe.prepare_request(**call, cross_attention_kwargs={"scale": 0.5})
    restored = Request.from_bytes(request.to_bytes())
    for field in fields(Request):
        mine, other = getattr(request, field.name), getattr(restored, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, other), field.name
            assert mine.dtype == other.dtype
        elif isinstance(mine, torch.Generator):
            assert torch.equal(mine.get_state(), other.get_state())
        elif field.name == "overlay":
            assert mine.box == other.box
            assert mine.image.tobytes() == other.image.tobytes()
            assert mine.mask.tobytes() == other.mask.tobytes()
        elif field.name == "state":
            assert mine.scalars() == other.scalars()
        else:
            assert mine == other, field.name
    a, b = (pipe.finish_request(replace(r, output_type="pil")).images[0] for r in (request, restored))
    assert a.tobytes() == b.tobytes()
    assert request.on("cpu").latents is not None


@pytest.mark.parametrize("blob", [b"", b"nothing", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_bytes_that_are_no_request(blob: bytes) -> None:
    with pytest.raises(InvalidParameter, match="blob"):
        Request.from_bytes(blob)


def test_bytes_of_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    request = tiny_checkpoints.ours("inpaint").prepare_request(**arguments())
    monkeypatch.setattr("worker.engine.request.FORMAT", "inpaint-farm-request/0")
    blob = request.to_bytes()
    monkeypatch.undo()
    with pytest.raises(InvalidParameter, match="inpaint-farm-request/0"):
        Request.from_bytes(blob)


def test_a_finished_request_takes_no_step() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    (done,) = pipe.denoise_step([pipe.prepare_request(**arguments(num_inference_steps=1))])
    with pytest.raises(InvalidParameter, match="no step left"):
        pipe.denoise_step([done])


def test_requests_of_different_lora_scale_do_not_share_a_step() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    calls = [{}, {"cross_attention_kwargs": {"scale": 0.5}}]
    with pytest.raises(InvalidParameter, match="LoRA scale"):
        pipe.denoise_step([pipe.prepare_request(**arguments(**call)) for call in calls])
