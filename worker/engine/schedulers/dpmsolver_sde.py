"""DPM-Solver SDE: a stochastic second-order exponential integrator over λ = −log σ (Lu et al., DPM-Solver,
arXiv:2206.00927, and DPM-Solver++, arXiv:2211.01095, with ancestral noise), after Crowson's k-diffusion
("sample_dpmpp_sde"). Its noise is a Brownian path, so that more steps refine the same picture.

State: between its two evaluations a step holds the sample it began with; `seed` is the path's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.brownian import brownian_noise, draw_seed
from worker.engine.schedulers.euler import euler_step
from worker.engine.schedulers.predictions import denoised
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, SIGMA_KEYS, SigmaSpaceScheduler, doubled
from worker.engine.schedulers.sigmas import sigma_to_timestep
from worker.engine.schedulers.state import SchedulerState

MIDPOINT = 0.5  # where in λ a step is evaluated the second time


class DPMSolverSDEScheduler(SigmaSpaceScheduler):
    """The path's seed is `start`'s, else the config's ``noise_sampler_seed``, else drawn at the first step from torch's
    global generator as diffusers does. `step` also takes ``s_noise``, a factor on the noise.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SIGMA_KEYS,
        **PLACEMENT_KEYS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "noise_sampler_seed": None,
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SigmaSpaceScheduler.CHOICES,
        "prediction_type": ("epsilon", "v_prediction"),
    }
    order: ClassVar[int] = 2
    TIMESTEP_DTYPE: ClassVar[type] = np.float64

    def _ends(self, sigmas: np.ndarray, key: str) -> tuple[float, float]:
        # As in LMS: diffusers reads a sister's sigma_min and sigma_max for every placement but Karras's.
        if key == "use_karras_sigmas":
            return float(sigmas[0]), float(sigmas[-1])
        return super()._ends(sigmas, key)

    def _interleave(self, sigmas: np.ndarray, walk: np.ndarray) -> Timetable:
        timesteps = np.empty(2 * len(walk) - 1)
        times = -np.log(sigmas[:-1])
        middles = np.exp(-(times[:-1] + np.diff(times) * MIDPOINT))
        timesteps[::2], timesteps[1::2] = walk, sigma_to_timestep(middles, np.log(self.training))
        return Timetable(timesteps, {"sigmas": doubled(sigmas)})

    def _seeds(self, seed: int | Sequence[int] | None) -> tuple[int, ...]:
        seed = self.settings["noise_sampler_seed"] if seed is None else seed
        seeds = () if seed is None else tuple(seed) if isinstance(seed, Sequence) else (seed,)
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in seeds):
            raise InvalidParameter("seed", f"must be a whole number of at least 0, or one an image, not {seed!r}")
        return seeds

    def _input_sigma(self, state: SchedulerState) -> torch.Tensor:
        if not state.held:
            return state.sigmas[state.index]
        return halfway(log_time(state.sigmas[state.index - 1]), log_time(state.sigmas[state.index])).neg().exp()

    def _advance(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        noise: NoiseSource,
        *,
        s_noise: float = 1.0,
    ) -> StepOutput:
        first = state.index - len(state.held)
        here, target = state.sigmas[first], state.sigmas[first + 1]
        clean = denoised(self.settings["prediction_type"], model_output, sample, self._input_sigma(state))
        if target == 0:
            return StepOutput(state.advance(), euler_step(sample, clean, here, target), clean)

        origin = state.held[0] if state.held else sample
        begin, end = log_time(here), log_time(target)
        end = end if state.held else halfway(begin, end)
        seeds = state.seed or (draw_seed(),)
        mean, up = stochastic_step(origin, clean, begin, end)
        lowest, highest = state.sigmas[state.sigmas > 0].min().item(), state.sigmas.max().item()
        path = brownian_noise(origin, lowest, highest, begin.neg().exp(), end.neg().exp(), seeds)
        held = () if state.held else (sample,)
        return StepOutput(state.advance(held=held, seed=seeds), mean + path * s_noise * up, clean)


def log_time(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.log().neg()


def halfway(begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    return begin + (end - begin) * MIDPOINT


def stochastic_step(
    sample: torch.Tensor, clean: torch.Tensor, begin: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean at −log σ = `end`, standard deviation of the noise to add): DPM-Solver++(1) from `begin` to below `end`
    (arXiv:2211.01095, with α = 1), and σ_up that makes up for it.
    """
    source, target = begin.neg().exp(), end.neg().exp()
    up = min(target, (target**2 * (source**2 - target**2) / source**2) ** 0.5)
    lower = log_time((target**2 - up**2) ** 0.5)
    return lower.neg().exp() / source * sample - (begin - lower).expm1() * clean, up
