"""KDPM2: DPM-Solver-2 (Lu et al., arXiv:2206.00927, algorithm 1) in the form of Karras et al. (arXiv:2206.00364,
algorithm 2 with its correction taken at the logarithmic midpoint of a step, after Crowson's k-diffusion).

State: between its two evaluations a step holds the sample it began with.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.euler import euler_step
from worker.engine.schedulers.predictions import denoised
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, SIGMA_KEYS, SigmaSpaceScheduler
from worker.engine.schedulers.sigmas import sigma_to_timestep
from worker.engine.schedulers.state import SchedulerState


class KDPM2DiscreteScheduler(SigmaSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SIGMA_KEYS,
        **PLACEMENT_KEYS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SigmaSpaceScheduler.CHOICES,
        "prediction_type": ("epsilon", "v_prediction"),
    }
    order: ClassVar[int] = 2

    def _rounds(self, key: str) -> bool:
        return key == "use_karras_sigmas"

    def _interleave(self, sigmas: np.ndarray, walk: np.ndarray) -> Timetable:
        """Midpoints go between whole timesteps: ``t₀ m₀ t₁ m₁ … tₙ₋₁``; level k is at entries 2k − 1 and 2k."""
        levels = torch.from_numpy(sigmas.astype(np.float32))
        inner = self._inner_tables(levels)
        mids = sigma_to_timestep(inner["midpoints"][:-1].numpy(), np.log(self.training), np.float32)
        timesteps = np.empty(2 * len(walk) - 1, dtype=walk.dtype)
        timesteps[::2], timesteps[1::2] = walk, mids
        whole = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        return Timetable(timesteps, {"sigmas": whole, **inner})

    def _inner_tables(self, levels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """``midpoints[k]`` is the level of step k's second evaluation."""
        return {"midpoints": log_midpoint(levels[1:], levels[:-1])}

    def _input_sigma(self, state: SchedulerState) -> torch.Tensor:
        return state.tables["midpoints"][state.index // 2] if state.held else state.sigmas[state.index]

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        middle, seen = state.tables["midpoints"][state.index // 2], self._input_sigma(state)
        clean = denoised(self.settings["prediction_type"], model_output, sample, seen)
        if not state.held:
            return StepOutput(state.advance(held=(sample,)), euler_step(sample, clean, seen, middle), clean)
        slope = (sample - clean) / seen
        previous = self._land(state, state.held[0], slope, model_output, noise)
        return StepOutput(state.advance(held=()), previous, clean)

    def _land(
        self,
        state: SchedulerState,
        origin: torch.Tensor,
        slope: torch.Tensor,
        model_output: torch.Tensor,
        noise: NoiseSource,
    ) -> torch.Tensor:
        """The whole step, from where it began along the slope at its midpoint."""
        return origin + slope * (state.sigmas[state.index] - state.sigmas[state.index - 1])


def log_midpoint(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """√(one·other); 0 where `one` is 0."""
    return one.log().lerp(other.log(), 0.5).exp()
