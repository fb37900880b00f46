"""Schedulers in the variance-exploding form of Karras et al. (arXiv:2206.00364): the sample is x₀ + σ·ε.

The model was trained on samples of unit variance, so its input is the sample over √(σ² + 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.alpha_space import BETA_CHOICES, BETA_KEYS
from worker.engine.schedulers.base import Scheduler, Timetable
from worker.engine.schedulers.noise_schedule import alphas_cumprod, training_sigmas
from worker.engine.schedulers.sigmas import PLACEMENTS, sigma_to_timestep
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.timesteps import SPACINGS, custom_timesteps, spaced_timesteps

SIGMA_KEYS: Mapping[str, Any] = {
    **BETA_KEYS,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
PLACEMENT_KEYS: Mapping[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


class NoiseLevelScheduler(Scheduler):
    """Common to all schedulers that walk a table of σ by index: `add_noise` goes by the state, not by a timestep."""

    training: np.ndarray
    """σ by training timestep, float32, rising."""

    def _constants(self) -> Mapping[str, Any]:
        return {"training": training_sigmas(alphas_cumprod(self.settings, floor_terminal=True))}

    def _levels(self, walk: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """(σ, timesteps) of a run over the timesteps `walk`, moved where a placement key is set."""
        sigmas = self._interpolated(walk)
        key = self._placement()
        if key is None:
            return sigmas, walk
        high, low = self._ends(sigmas, key)
        sigmas = PLACEMENTS[key](high, low, steps)
        moved = sigma_to_timestep(sigmas, np.log(self.training))
        return sigmas, moved.round() if self._rounds(key) else moved

    def _interpolated(self, walk: np.ndarray) -> np.ndarray:
        return np.interp(walk, np.arange(len(self.training)), self.training)

    def _placement(self) -> str | None:
        return next((key for key in PLACEMENTS if self.settings.get(key)), None)

    def _ends(self, sigmas: np.ndarray, key: str) -> tuple[float, float]:
        """The σ to place levels between: the run's own, unless the config names others.

        diffusers reads sigma_min and sigma_max even where they are a sister's keys, so the whole config is asked.
        """
        high, low = self.config.get("sigma_max"), self.config.get("sigma_min")
        return (float(sigmas[0]) if high is None else high), (float(sigmas[-1]) if low is None else low)

    def _rounds(self, key: str) -> bool:
        """Whether timesteps of placed σ are rounded to whole ones."""
        return False

    def _custom(self, timesteps: Sequence[float], dtype: type) -> np.ndarray:
        key = self._placement()
        if key is not None:
            raise InvalidParameter("timesteps", f"cannot be given with {key}, which chooses them: drop one of the two")
        return custom_timesteps(timesteps, self.settings["num_train_timesteps"], dtype)


class SigmaSpaceScheduler(NoiseLevelScheduler):
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "beta_schedule": BETA_CHOICES,
        "prediction_type": ("epsilon", "sample", "v_prediction"),
        "timestep_spacing": SPACINGS,
    }
    TIMESTEP_DTYPE: ClassVar[type] = np.float32

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        if timesteps is not None:
            walk = self._custom(timesteps, self.TIMESTEP_DTYPE)
        else:
            train, offset = self.settings["num_train_timesteps"], self.settings["steps_offset"]
            spacing = self.settings["timestep_spacing"]
            walk = spaced_timesteps(spacing, steps, train, offset, self.TIMESTEP_DTYPE)
        levels, walk = self._levels(walk, steps)
        return self._interleave(np.append(levels, self._last_sigma()), walk)

    def _last_sigma(self) -> float:
        return 0.0

    def _interleave(self, sigmas: np.ndarray, walk: np.ndarray) -> Timetable:
        """The schedule from n + 1 levels and n timesteps; second-order classes put their inner evaluations between."""
        return Timetable(walk.astype(np.float32), {"sigmas": torch.from_numpy(sigmas.astype(np.float32))})

    def init_noise_sigma(self, state: SchedulerState) -> torch.Tensor:
        """The largest σ; with "leading" spacing, whose first σ is well below the training's, √(σ² + 1)."""
        largest = state.sigmas.max()
        return (largest**2 + 1) ** 0.5 if self.settings["timestep_spacing"] == "leading" else largest

    def model_input(self, state: SchedulerState, sample: torch.Tensor) -> torch.Tensor:
        self._require_step(state)
        return sample / (self._input_sigma(state) ** 2 + 1) ** 0.5

    def _input_sigma(self, state: SchedulerState) -> torch.Tensor:
        """σ of the sample that the model sees next."""
        return state.sigmas[state.index]

    def add_noise(
        self,
        state: SchedulerState,
        original: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """original + σ·noise at the state's own level; `timestep` is taken for the signature's sake and not read, as
        diffusers does once a begin index is set.
        """
        sigma = state.sigmas[state.index].to(original.dtype)
        return original + noise * sigma


def doubled(sigmas: np.ndarray) -> torch.Tensor:
    """``[n + 1]`` levels as the ``[2n]`` of a second-order schedule, float32.

    The level where a step ends is that of its second evaluation, and of the next step's first.
    """
    return torch.from_numpy(np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]]).astype(np.float32))
