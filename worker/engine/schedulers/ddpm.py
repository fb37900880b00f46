"""DDPM: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.alpha_space import (
    BETA_CHOICES,
    BETA_KEYS,
    CLIP_KEYS,
    SPACING_KEYS,
    THRESHOLD_KEYS,
    AlphaSpaceScheduler,
)
from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.predictions import bounded, predicted_clean
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.timesteps import custom_timesteps, require_falling

LEARNED = ("learned", "learned_range")

# Standard deviation of the noise of a step, from the posterior's variance β̃ (eq. 7), β, and what the model predicts
# (Nichol & Dhariwal, arXiv:2102.09672, eq. 15).
DEVIATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "fixed_small": lambda posterior, beta, predicted: posterior**0.5,
    "fixed_small_log": lambda posterior, beta, predicted: torch.exp(0.5 * torch.log(posterior)),
    "fixed_large": lambda posterior, beta, predicted: beta**0.5,
    "fixed_large_log": lambda posterior, beta, predicted: torch.exp(0.5 * torch.log(beta)),
    "learned": lambda posterior, beta, predicted: predicted**0.5,
    "learned_range": lambda posterior, beta, predicted: torch.exp(
        0.5 * ((predicted + 1) / 2 * torch.log(beta) + (1 - (predicted + 1) / 2) * torch.log(posterior))
    ),
}


class DDPMScheduler(AlphaSpaceScheduler):
    """With a learned ``variance_type`` the model's output has twice the sample's channels."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **BETA_KEYS,
        **CLIP_KEYS,
        **THRESHOLD_KEYS,
        **SPACING_KEYS,
        "variance_type": "fixed_small",
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AlphaSpaceScheduler.CHOICES,
        "beta_schedule": (*BETA_CHOICES, "laplace", "sigmoid"),
        "variance_type": tuple(DEVIATIONS),
    }
    CUSTOM: ClassVar[frozenset[str]] = frozenset({"timesteps"})

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        if timesteps is None:
            return super()._timetable(steps, timesteps, sigmas)
        walk = custom_timesteps(timesteps, self.settings["num_train_timesteps"], np.int64)
        require_falling(walk)
        return Timetable(walk, {})

    def _check_shapes(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        if self.settings["variance_type"] not in LEARNED:
            return super()._check_shapes(model_output, sample)
        rows, channels, *size = sample.shape
        if model_output.shape != (rows, 2 * channels, *size):
            rule = f"must have twice the sample's {channels} channels for a learned variance_type"
            raise InvalidParameter("model_output", rule)

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        model_output, *predicted = model_output.split(sample.shape[1], dim=1)
        timestep = int(state.timesteps[state.index])
        here, there = self.alphas_cumprod[timestep], self._next_bar(state)
        alpha = here / there
        beta = 1 - alpha
        clean = predicted_clean(self.settings["prediction_type"], model_output, sample, here**0.5, (1 - here) ** 0.5)
        clean = bounded(self.settings, clean)
        previous = posterior_mean(clean, sample, here, there)
        if timestep > 0:
            posterior = torch.clamp((1 - there) / (1 - here) * beta, min=1e-20)
            deviation = DEVIATIONS[self.settings["variance_type"]](posterior, beta, *predicted or (beta,))
            previous = previous + deviation * noise.like(model_output)
        return StepOutput(state.advance(), previous, clean)

    def _next_bar(self, state: SchedulerState) -> torch.Tensor:
        last = state.index + 1 == len(state.timesteps)
        return torch.tensor(1.0) if last else self.alphas_cumprod[state.timesteps[state.index + 1]]


def posterior_mean(clean: torch.Tensor, sample: torch.Tensor, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """μ̃ of eq. 7, from ᾱ `here` to ᾱ `there`."""
    alpha = here / there
    clean_weight = there**0.5 * (1 - alpha) / (1 - here)
    sample_weight = alpha**0.5 * (1 - there) / (1 - here)
    return clean_weight * clean + sample_weight * sample
