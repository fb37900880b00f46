"""Euler with ancestral noise: each step denoises below its target and adds fresh noise up to it.

The sampler of Crowson's k-diffusion ("sample_euler_ancestral"), whose split of σ is DDPM's posterior
(arXiv:2006.11239, eq. 7) in the variance-exploding form of arXiv:2206.00364.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.euler import euler_step
from worker.engine.schedulers.predictions import denoised
from worker.engine.schedulers.sigma_space import SIGMA_KEYS, SigmaSpaceScheduler
from worker.engine.schedulers.state import SchedulerState


class EulerAncestralDiscreteScheduler(SigmaSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**SIGMA_KEYS, "rescale_betas_zero_snr": False}
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SigmaSpaceScheduler.CHOICES,
        "prediction_type": ("epsilon", "v_prediction"),
    }

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        sigma, target = state.sigmas[state.index], state.sigmas[state.index + 1]
        sample = sample.float()
        clean = denoised(self.settings["prediction_type"], model_output, sample, sigma)
        down, up = ancestral_split(sigma, target)
        previous = euler_step(sample, clean, sigma, down) + noise.like(model_output) * up
        return StepOutput(state.advance(), previous.to(model_output.dtype), clean)


def ancestral_split(sigma: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(σ_down, σ_up) with σ_down² + σ_up² = `target`²; works on vectors of levels as well."""
    up = (target**2 * (sigma**2 - target**2) / sigma**2) ** 0.5
    down = (target**2 - up**2) ** 0.5
    # After a fall of many thousandfold up² can round to above target²; σ_down is target²/σ, by the same equations.
    return torch.where(down.isnan(), target**2 / sigma, down), up
