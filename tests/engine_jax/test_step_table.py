"""A table of numbers against the schedulers that it stands for."""

import jax
import numpy as np
import pytest
import torch

from tests.engine.tiny_checkpoints import SCHEDULER
from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.schedulers import from_config
from worker.engine_jax.step_table import CAPACITY, DETERMINISTIC, WINDOW, History, advance, step_table

ADVANCE = jax.jit(advance)
_V = {"prediction_type": "v_prediction"}
_KARRAS = {"use_karras_sigmas": True}


def model(sample: torch.Tensor, timestep: float) -> torch.Tensor:
    """Far from linear, so that an output in the wrong place is seen."""
    return torch.sin(3 * sample) + 0.001 * timestep


def by_the_scheduler(scheduler, latents: torch.Tensor, steps: int, strength: float) -> np.ndarray:
    state = scheduler.start(steps, strength=strength)
    sample = latents * scheduler.init_noise_sigma(state)
    while not scheduler.done(state):
        output = model(scheduler.model_input(state, sample), float(scheduler.timestep(state)))
        state, sample, _ = scheduler.step(state, output, sample)
    return sample.numpy()


def by_the_table(scheduler, latents: torch.Tensor, steps: int, strength: float) -> np.ndarray:
    table = step_table(scheduler, steps, strength)
    history = History.begin(latents.numpy() * table.start)
    for index in range(int(table.steps)):
        sample = torch.from_numpy(np.array(table.scales[index] * history.samples[0]))
        output = model(sample, float(table.timesteps[index])).numpy()
        history = ADVANCE(table, index, history, output)
    return np.asarray(history.samples[0])


@pytest.mark.parametrize("options, strength", [({}, 1.0), (_V, 0.6)], ids=["epsilon", "v from the middle"])
@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_a_run_by_the_table_is_the_schedulers(name, options, strength):
    scheduler = from_config({**SCHEDULER, **options}, _class_name=name)
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = by_the_scheduler(scheduler, latents, 9, strength)
    got = by_the_table(scheduler, latents, 9, strength)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name, options",
    [
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, **_KARRAS}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("LMSDiscreteScheduler", _KARRAS),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True}),
    ],
)
def test_so_is_a_run_with_other_settings(name, options):
    scheduler = from_config({**SCHEDULER, **options}, _class_name=name)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = by_the_scheduler(scheduler, latents, 12, 1.0)
    assert np.abs(by_the_table(scheduler, latents, 12, 1.0) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_tables_of_all_lengths_have_one_shape():
    shapes = [
        [np.shape(part) for part in step_table(from_config(SCHEDULER, _class_name="DDIMScheduler"), steps)]
        for steps in (1, 20)
    ]
    assert shapes[0] == shapes[1] == [(), (), (CAPACITY,), (CAPACITY,), (CAPACITY, WINDOW), (CAPACITY, WINDOW)]


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("EulerAncestralDiscreteScheduler", {}, "EulerAncestralDiscreteScheduler"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding"),
    ],
)
def test_what_is_no_weighted_sum_is_refused_by_name(name, options, said):
    with pytest.raises(FeatureUnavailable, match=said):
        step_table(from_config({**SCHEDULER, **options}, _class_name=name), 4)


def test_a_number_of_steps_that_the_scheduler_refuses_is_refused():
    with pytest.raises(InvalidParameter, match="num_inference_steps"):
        step_table(from_config(SCHEDULER, _class_name="DDIMScheduler"), 1001)
