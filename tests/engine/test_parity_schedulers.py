"""Every scheduler under the pipeline: `pipe.scheduler = X.from_config(pipe.scheduler.config, …)` equals diffusers',
with the random numbers each draws, with partial strength, with its own timesteps or sigmas."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity
from worker.engine import schedulers
from worker.engine.errors import InvalidParameter

NAMES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
]


@contextmanager
def scheduled(kind: str, name: str, **changes: Any) -> Iterator[None]:
    """Both pipelines of `kind` with that scheduler, made from the checkpoint's own configuration."""
    ours, theirs = tiny_checkpoints.ours(kind), tiny_checkpoints.oracle(kind)
    before = ours.scheduler, theirs.scheduler
    ours.scheduler = schedulers.from_config(ours.scheduler.config, _class_name=name, **changes)
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config, **changes)
    try:
        yield
    finally:
        ours.scheduler, theirs.scheduler = before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "strength"), [("inpaint", 1.0), ("plain", 0.7), pytest.param("inpaint", 0.6, marks=pytest.mark.full)]
)
def test_every_scheduler(name: str, kind: str, strength: float) -> None:
    with scheduled(kind, name):
        assert_parity(kind, strength=strength, num_inference_steps=6, num_images_per_prompt=2, guidance_scale=2.0)


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
)
@pytest.mark.parametrize("kind", ["inpaint", "plain"])
def test_one_generator_a_picture(name: str, kind: str) -> None:
    with scheduled(kind, name):
        assert_parity(kind, num_images_per_prompt=2, seed=[1, 2], strength=0.8)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("LCMScheduler", {"original_inference_steps": 50}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_variants(name: str, changes: dict[str, Any]) -> None:
    with scheduled("plain", name, **changes):
        assert_parity("plain", num_inference_steps=6, strength=0.9, guidance_scale=2.0)


CUSTOM: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {"timesteps": [900, 600, 300, 50]}),
    ("EulerDiscreteScheduler", {"timesteps": [900, 600, 300, 50]}),
    ("EulerDiscreteScheduler", {"sigmas": [10.0, 5.0, 1.0, 0.1]}),
    ("HeunDiscreteScheduler", {"timesteps": [900, 600, 300, 50]}),
    ("DPMSolverMultistepScheduler", {"timesteps": [900, 600, 300, 50]}),
    ("LCMScheduler", {"timesteps": [979, 659, 339, 19]}),
]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("name", "arguments"), CUSTOM, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_custom_schedules(name: str, arguments: dict[str, Any], strength: float) -> None:
    with scheduled("inpaint", name):
        assert_parity("inpaint", **arguments, strength=strength)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("PNDMScheduler", {"timesteps": [900, 100]}), ("UniPCMultistepScheduler", {"timesteps": [900, 100]})],
)
def test_schedules_a_scheduler_does_not_take(name: str, arguments: dict[str, Any]) -> None:
    with scheduled("inpaint", name):
        for pipe in (tiny_checkpoints.oracle("inpaint"), tiny_checkpoints.ours("inpaint")):
            with pytest.raises(ValueError, match=r"timesteps|timestep schedules"):
                assert_parity("inpaint", ours=pipe, theirs=pipe, **arguments)


@pytest.mark.parametrize(
    ("name", "outdated", "mended"),
    [
        ("DDIMScheduler", {"steps_offset": 0}, {"steps_offset": 1}),
        ("PNDMScheduler", {"skip_prk_steps": False, "steps_offset": 0}, {"skip_prk_steps": True, "steps_offset": 1}),
        ("DPMSolverSinglestepScheduler", {}, {}),
    ],
)
def test_an_outdated_config_is_mended(name: str, outdated: dict[str, Any], mended: dict[str, Any]) -> None:
    ours, theirs = tiny_checkpoints.ours("inpaint"), tiny_checkpoints.oracle("inpaint")
    base = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **outdated}
    made = [
        type(ours)(**{**ours.components, "scheduler": schedulers.from_config({"_class_name": name, **base})}),
        type(theirs)(**{**theirs.components, "scheduler": getattr(diffusers, name)(**base)}),
    ]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
        assert mended.items() <= dict(pipe.scheduler.config).items()
    assert_parity("inpaint", *made, num_inference_steps=5)


def test_a_foreign_scheduler_is_refused() -> None:
    ours = tiny_checkpoints.ours("inpaint")
    pipe = type(ours)(**{**ours.components, "scheduler": ours.scheduler})
    pipe.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(InvalidParameter, match="scheduler"):
        assert_parity("inpaint", ours=pipe)
