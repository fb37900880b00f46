"""LCM: Luo et al., "Latent Consistency Models", arXiv:2310.04378, multistep consistency sampling."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.alpha_space import (
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

SIGMA_DATA = 0.5


class LCMScheduler(AlphaSpaceScheduler):
    """Walks a subset of the ``original_inference_steps`` that the model was distilled over.

    ``timestep_spacing``, ``steps_offset`` and ``set_alpha_to_one`` are kept for the config's sake: the distillation
    schedule leaves them nothing to say.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **BETA_KEYS,
        **CLIP_KEYS,
        **THRESHOLD_KEYS,
        **SPACING_KEYS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "original_inference_steps": 50,
        "timestep_scaling": 10.0,
    }
    CUSTOM: ClassVar[frozenset[str]] = frozenset({"timesteps"})

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        train, distilled = self.settings["num_train_timesteps"], self.settings["original_inference_steps"]
        if distilled > train:
            raise InvalidParameter("original_inference_steps", f"must be at most num_train_timesteps, {train}")
        if timesteps is not None:
            walk = custom_timesteps(timesteps, train, np.int64)
            require_falling(walk)
            return Timetable(walk, {})
        if steps > distilled:
            rule = f"must be at most original_inference_steps, {distilled}, of which the schedule is a part"
            raise InvalidParameter("num_inference_steps", rule)
        skeleton = np.arange(distilled, 0, -1) * (train // distilled) - 1
        chosen = np.floor(np.linspace(0, distilled, num=steps, endpoint=False)).astype(np.int64)
        return Timetable(skeleton[chosen], {})

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        timestep = state.timesteps[state.index]
        here = self.alphas_cumprod[timestep]
        clean = predicted_clean(self.settings["prediction_type"], model_output, sample, here.sqrt(), (1 - here).sqrt())
        skip, out = boundary_scalings(timestep, self.settings["timestep_scaling"])
        denoised = out * bounded(self.settings, clean) + skip * sample
        if state.index + 1 == len(state.timesteps):
            return StepOutput(state.advance(), denoised, denoised)
        there = self.alphas_cumprod[state.timesteps[state.index + 1]]
        renoised = there.sqrt() * denoised + (1 - there).sqrt() * noise.like(model_output, denoised.dtype)
        return StepOutput(state.advance(), renoised, denoised)


def boundary_scalings(timestep: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(c_skip, c_out) that make the consistency function the identity at timestep 0 (arXiv:2303.01469, eq. 5)."""
    scaled = timestep * scaling
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
    return skip, out
