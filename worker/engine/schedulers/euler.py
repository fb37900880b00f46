"""Euler: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364,
algorithm 2 without its second-order correction."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.predictions import denoised
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, SIGMA_KEYS, SigmaSpaceScheduler
from worker.engine.schedulers.sigmas import custom_sigmas, sigma_to_timestep
from worker.engine.schedulers.state import SchedulerState


class EulerDiscreteScheduler(SigmaSpaceScheduler):
    """`step` also takes the paper's churn: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise``; none by default."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SIGMA_KEYS,
        **PLACEMENT_KEYS,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SigmaSpaceScheduler.CHOICES,
        "prediction_type": ("epsilon", "sample", "original_sample", "v_prediction"),
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }
    CUSTOM: ClassVar[frozenset[str]] = frozenset({"timesteps", "sigmas"})

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        if sigmas is not None:
            levels = custom_sigmas(sigmas)
            return self._interleave(levels, sigma_to_timestep(levels[:-1], np.log(self.training)))
        if timesteps is not None and self._continuous():
            raise InvalidParameter("timesteps", "cannot be given with timestep_type 'continuous' and v_prediction")
        return super()._timetable(steps, timesteps, sigmas)

    def _interpolated(self, walk: np.ndarray) -> np.ndarray:
        if self.settings["interpolation_type"] == "linear":
            return super()._interpolated(walk)
        # One level more than timesteps: the run ends at the second to last, and the final σ is never reached.
        ends = torch.linspace(np.log(self.training[-1]), np.log(self.training[0]), len(walk) + 1)
        return ends.exp().numpy()

    def _last_sigma(self) -> float:
        return 0.0 if self.settings["final_sigmas_type"] == "zero" else float(self.training[0])

    def _interleave(self, sigmas: np.ndarray, walk: np.ndarray) -> Timetable:
        timetable = super()._interleave(sigmas, walk)
        if not self._continuous():
            return timetable
        return Timetable(0.25 * timetable.tables["sigmas"][:-1].log(), timetable.tables)

    def _continuous(self) -> bool:
        """Timesteps are ¼·log σ, as EDM-style v-prediction models are told (arXiv:2206.00364, table 1)."""
        return self.settings["timestep_type"] == "continuous" and self.settings["prediction_type"] == "v_prediction"

    def _advance(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        noise: NoiseSource,
        *,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
    ) -> StepOutput:
        sigma, target = state.sigmas[state.index], state.sigmas[state.index + 1]
        sample = sample.float()  # σ reaches 14.6 in half precision's coarse range
        raised = sigma
        if s_churn > 0 and s_tmin <= sigma <= s_tmax:
            raised = sigma * (min(s_churn / (len(state.sigmas) - 1), 2**0.5 - 1) + 1)
            sample = sample + noise.like(model_output) * s_noise * (raised**2 - sigma**2) ** 0.5
        kind = self.settings["prediction_type"]
        clean = denoised(kind, model_output, sample, raised if kind == "epsilon" else sigma)
        previous = euler_step(sample, clean, raised, target).to(model_output.dtype)
        return StepOutput(state.advance(), previous, clean)


def euler_step(sample: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Along dx/dσ = (x − x₀)/σ from `sigma` to `target` (eqs. 1 and 3 with σ(t) = t)."""
    return sample + (sample - clean) / sigma * (target - sigma)
