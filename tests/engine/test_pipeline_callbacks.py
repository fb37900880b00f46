"""Functions called between two steps see diffusers' tensors, and what they give back is used."""

from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback as TheirCutoff

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity, assert_same_latents, run
from worker.engine.callbacks import TENSOR_INPUTS, MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from worker.engine.errors import InvalidParameter

KINDS = pytest.mark.parametrize("kind", ["inpaint", "plain"])


def both(kind: str, arguments: dict[str, Any]) -> list[Any]:
    pipes = tiny_checkpoints.ours(kind), tiny_checkpoints.oracle(kind)
    return [run(pipe, {"output_type": "latent", **arguments}) for pipe in pipes]


@KINDS
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_every_tensor_is_seen(kind: str, guidance_scale: float) -> None:
    seen: list[dict[str, Any]] = []

    def record(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        copies = {name: None if t is None else t.clone() for name, t in tensors.items()}
        seen.append({"step": step, "timestep": int(timestep), "steps": pipe.num_timesteps, **copies})
        return tensors

    arguments = {"guidance_scale": guidance_scale, "strength": 0.8, "num_images_per_prompt": 2}
    both(kind, {**arguments, "callback_on_step_end": record, "callback_on_step_end_tensor_inputs": TENSOR_INPUTS})
    assert len(seen) % 2 == 0
    ours, theirs = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert_same_latents(value, other[name])
            else:
                assert value == other[name], name


@KINDS
@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "mask", "masked_image_latents"])
def test_a_returned_tensor_is_used(kind: str, name: str) -> None:
    def halve(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {name: tensors[name] * 0.5}

    changed, expected = both(kind, {"callback_on_step_end": halve, "callback_on_step_end_tensor_inputs": [name]})
    assert_same_latents(changed, expected)
    untouched = run(tiny_checkpoints.ours(kind), {"output_type": "latent"})
    used = kind == "inpaint" or name != "masked_image_latents"
    assert torch.equal(changed, untouched) is not used


def test_negative_embeds_alone_change_nothing() -> None:
    def halve(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"negative_prompt_embeds": tensors["negative_prompt_embeds"] * 0.5}

    names = ["negative_prompt_embeds"]
    assert_parity("inpaint", callback_on_step_end=halve, callback_on_step_end_tensor_inputs=names)


@KINDS
@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_guidance_can_be_changed(kind: str, scale: float) -> None:
    def change(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = scale if step == 1 else pipe._guidance_scale
        return tensors

    assert_parity(kind, callback_on_step_end=change)


@pytest.mark.parametrize("cutoff", [SDCFGCutoffCallback, TheirCutoff])
def test_guidance_can_be_cut_off(cutoff: Any) -> None:
    """diffusers' inpaint pipeline fails here (its mask stays doubled), so the expectation is made of two calls."""
    pipe, steps = tiny_checkpoints.ours("inpaint"), []

    def watch(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(len(tensors["prompt_embeds"]))
        return tensors

    several = MultiPipelineCallbacks([cutoff(cutoff_step_ratio=None, cutoff_step_index=1), watch])
    several.callbacks[1] = type("Watch", (), {"tensor_inputs": ["prompt_embeds"], "__call__": staticmethod(watch)})()
    made = run(pipe, {"output_type": "latent", "callback_on_step_end": several})
    assert steps == [2, 1, 1, 1]

    request = pipe.prepare_request(**call())
    for step in range(4):
        if step == 2:
            request = without_guidance(request)
        (request,) = pipe.denoise_step([request])
    assert_same_latents(made, request.latents, 1e-6)
    assert pipe.guidance_scale == 0.0


def call() -> dict[str, Any]:
    from tests.engine.comparison import generator
    from tests.engine.pictures import hole, picture

    return {
        "prompt": "a red cat",
        "image": picture(),
        "mask_image": hole(),
        "num_inference_steps": 4,
        "generator": generator(),
        "output_type": "latent",
    }


def without_guidance(request: Any) -> Any:
    from dataclasses import replace

    return replace(request, negative_prompt_embeds=None)


@KINDS
def test_interrupt(kind: str) -> None:
    def stop(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return tensors

    assert_parity(kind, callback_on_step_end=stop, num_inference_steps=5)
    tiny_checkpoints.oracle(kind)._interrupt = False
    assert_parity(kind, num_inference_steps=2)


@pytest.mark.parametrize("every", [1, 2])
def test_older_callback(every: int) -> None:
    seen: list[tuple[int, int, torch.Tensor]] = []

    def record(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> None:
        seen.append((step, int(timestep), latents.clone()))

    both("inpaint", {"callback": record, "callback_steps": every, "num_inference_steps": 5, "strength": 0.8})
    ours, theirs = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert len(ours) == -(-4 // every)
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_latents(mine[2], other[2])


@pytest.mark.parametrize("tensor", [torch.zeros(1, 4, 4, 4), torch.zeros(2, 4, 8, 8)])
def test_a_tensor_of_another_shape_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(InvalidParameter, match="callback_on_step_end"):
        run(tiny_checkpoints.ours("inpaint"), {"callback_on_step_end": lambda *_: {"latents": tensor}})


@pytest.mark.parametrize(
    "arguments", [{}, {"cutoff_step_index": 1}, {"cutoff_step_ratio": 2.0}, {"cutoff_step_ratio": None}]
)
def test_cutoff_arguments(arguments: dict[str, Any]) -> None:
    for base in (PipelineCallback, TheirCutoff):
        if arguments:
            with pytest.raises(ValueError, match="cutoff_step"):
                base(**arguments)
        else:
            base(**arguments)
