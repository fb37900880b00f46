"""DDIM: Song, Meng & Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.alpha_space import (
    BETA_KEYS,
    CLIP_KEYS,
    SPACING_KEYS,
    THRESHOLD_KEYS,
    AlphaSpaceScheduler,
)
from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.predictions import bounded, predicted_clean, predicted_noise
from worker.engine.schedulers.state import SchedulerState


class DDIMScheduler(AlphaSpaceScheduler):
    """`step` also takes ``use_clipped_model_output``: derive ε again from the clipped x₀ (as GLIDE does)."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **BETA_KEYS,
        **CLIP_KEYS,
        **THRESHOLD_KEYS,
        **SPACING_KEYS,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
    }
    TAKES: ClassVar[frozenset[str]] = frozenset({"eta", "variance_noise"})

    def _advance(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        noise: NoiseSource,
        *,
        eta: float,
        use_clipped_model_output: bool = False,
    ) -> StepOutput:
        if not 0 <= eta <= 1:
            raise InvalidParameter("eta", f"must be between 0 (DDIM) and 1 (DDPM), not {eta!r}")
        kind = self.settings["prediction_type"]
        here, there = self._levels(state)
        signal, level = here**0.5, (1 - here) ** 0.5

        clean = bounded(self.settings, predicted_clean(kind, model_output, sample, signal, level))
        if use_clipped_model_output:
            epsilon = (sample - signal * clean) / level
        else:
            epsilon = predicted_noise(kind, model_output, sample, signal, level)
        deviation = eta * ancestral_variance(here, there) ** 0.5
        previous = generalised_step(clean, epsilon, there, deviation)
        if eta > 0:
            previous = previous + deviation * noise.like(model_output)
        return StepOutput(state.advance(), previous, clean)

    def _levels(self, state: SchedulerState) -> tuple[torch.Tensor, torch.Tensor]:
        """ᾱ of this timestep and of the one a regular stride further: past the end it is 1, or ᾱ₀."""
        timestep = int(state.timesteps[state.index])
        before = timestep - self.settings["num_train_timesteps"] // state.num_inference_steps
        if before >= 0:
            return self.alphas_cumprod[timestep], self.alphas_cumprod[before]
        end = torch.tensor(1.0) if self.settings["set_alpha_to_one"] else self.alphas_cumprod[0]
        return self.alphas_cumprod[timestep], end


def ancestral_variance(here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """σ² of eq. 16 at η = 1, between ᾱ `here` and ᾱ `there`."""
    return ((1 - there) / (1 - here)) * (1 - here / there)


def generalised_step(
    clean: torch.Tensor, epsilon: torch.Tensor, there: torch.Tensor, deviation: torch.Tensor
) -> torch.Tensor:
    """Eq. 12 without its last term: x₀ carried to ᾱ `there`, leaving room for noise of standard `deviation`."""
    direction = (1 - there - deviation**2) ** 0.5 * epsilon
    return there**0.5 * clean + direction
