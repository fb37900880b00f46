"""A run of a scheduler as a table of numbers, so that one compiled loop walks any of them.

Without fresh noise and without clipping, a sampler is linear: each sample is a weighted sum of the samples and model
outputs before it, and of no more than the last few of each. The weights are read off the engine's own scheduler, by
letting it step over unit vectors, so that no sampler is written a second time.

    x[i+1] = Σₖ samples[i, k] · x[i−k] + Σₖ outputs[i, k] · f(scales[i] · x[i], timesteps[i])[i−k]
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.schedulers import Scheduler

WINDOW = 13  # PNDM's first multistep looks back on three steps of Runge-Kutta, of four evaluations each
CAPACITY = 2048  # evaluations: a table of any run has this shape, so that its length compiles nothing

# Those that draw no noise. Of the multistep solver the ODE variants only.
DETERMINISTIC = frozenset(
    {
        "DDIMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
# Settings of theirs under which a step is not a weighted sum.
_NONLINEAR = ("clip_sample", "thresholding")


class StepTable(NamedTuple):
    """All float32 but `steps`; rows beyond `steps` are zero."""

    steps: np.ndarray
    """int32 scalar: evaluations of the model."""
    start: np.ndarray
    """Scalar: what standard noise is multiplied with before the first."""
    timesteps: np.ndarray
    """[CAPACITY]: what the model is told."""
    scales: np.ndarray
    """[CAPACITY]: what a sample is multiplied with before the model sees it."""
    samples: np.ndarray
    """[CAPACITY, WINDOW], newest first."""
    outputs: np.ndarray
    """[CAPACITY, WINDOW], newest first."""


class History(NamedTuple):
    """A run between two steps: the last samples and model outputs, [WINDOW, B, C, h, w] float32, newest first."""

    samples: jax.Array
    outputs: jax.Array

    @classmethod
    def begin(cls, latents: jax.Array) -> "History":
        empty = jnp.zeros((WINDOW, *latents.shape), jnp.float32)
        return cls(empty.at[0].set(latents), empty)


def require_deterministic(scheduler: Scheduler) -> None:
    """Raise FeatureUnavailable, naming scheduler or setting, for what is no weighted sum."""
    name, settings = type(scheduler).__name__, scheduler.settings
    if name not in DETERMINISTIC:
        raise FeatureUnavailable(
            f"scheduler: {name} draws noise at its steps, which the JAX back end does not; choose one of "
            f"{', '.join(sorted(DETERMINISTIC))}"
        )
    if str(settings.get("algorithm_type", "")).startswith("sde"):
        raise FeatureUnavailable(
            f"scheduler: algorithm_type {settings['algorithm_type']!r} draws noise at its steps, which the JAX back "
            "end does not; choose dpmsolver++"
        )
    for key in _NONLINEAR:
        if settings.get(key):
            raise FeatureUnavailable(f"scheduler: the JAX back end does not do {key}; set it to false")


@lru_cache(maxsize=64)
def step_table(scheduler: Scheduler, num_inference_steps: int, strength: float = 1.0) -> StepTable:
    """The table of one run. Raises FeatureUnavailable (`require_deterministic`), and InvalidParameter as
    `Scheduler.start` does.
    """
    require_deterministic(scheduler)
    state = scheduler.start(num_inference_steps, strength=strength)
    count = scheduler.remaining(state)
    if count > CAPACITY:
        raise InvalidParameter("num_inference_steps", f"makes {count} evaluations, and {CAPACITY} are the most")
    start = float(scheduler.init_noise_sigma(state))
    timesteps, scales = np.zeros(CAPACITY), np.zeros(CAPACITY)
    weights = np.zeros((2, CAPACITY, WINDOW))
    # A coordinate for every sample, then one for every model output.
    unit = torch.eye(2 * count, dtype=torch.float64)[:, None, :, None, None]
    for i in range(count):
        timesteps[i] = scheduler.timestep(state)
        scales[i] = scheduler.model_input(state, torch.ones(1, 1, 1, 1, dtype=torch.float64))
        state, following, _ = scheduler.step(state, unit[count + i], unit[i])
        for kind, part in enumerate(following.reshape(2, count).numpy()):
            newest = part[: i + 1][::-1]
            if newest[WINDOW:].any():
                raise FeatureUnavailable(
                    f"scheduler: {type(scheduler).__name__} looks back further than {WINDOW} evaluations"
                )
            weights[kind, i, : len(newest)] = newest[:WINDOW]
    floats = (np.asarray(table, np.float32) for table in (start, timesteps, scales, *weights))
    return StepTable(np.asarray(count, np.int32), *floats)


def advance(table: StepTable, index: jax.Array, history: History, output: jax.Array) -> History:
    """The history after step `index`, whose model output is `output` [B, C, h, w]."""
    outputs = _pushed(history.outputs, output)
    following = jnp.tensordot(table.samples[index], history.samples, 1) + jnp.tensordot(
        table.outputs[index], outputs, 1
    )
    return History(_pushed(history.samples, following), outputs)


def _pushed(window: jax.Array, newest: jax.Array) -> jax.Array:
    return jnp.concatenate([newest[None], window[:-1]])
