"""Schedulers that integrate in λ = log(α/σ), half the log-SNR: DPM-Solver, DEIS, UniPC.

The sample is α·x₀ + σ·ε with α² + σ² = 1 (variance-preserving), the table of levels holds σ/α, and the model sees the
sample as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from worker.engine.schedulers.alpha_space import BETA_CHOICES, BETA_KEYS, THRESHOLD_KEYS
from worker.engine.schedulers.base import Timetable
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, NoiseLevelScheduler
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.timesteps import SPACINGS, solver_timesteps

# The flow-matching keys of these classes are read and checked, and must leave flow matching off: the models here are
# diffusion models.
SOLVER_KEYS: Mapping[str, Any] = {
    **BETA_KEYS,
    **THRESHOLD_KEYS,
    **PLACEMENT_KEYS,
    "prediction_type": "epsilon",
    "solver_order": 2,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
SPACING_KEYS: Mapping[str, Any] = {"timestep_spacing": "linspace", "steps_offset": 0}
FEW_STEPS = 15  # below this many, the last steps take a lower order for stability (arXiv:2211.01095)


class Level(NamedTuple):
    """One noise level, 0-d float32 each: ``alpha² + sigma² = 1``, ``lam = log(alpha/sigma)``."""

    alpha: torch.Tensor
    sigma: torch.Tensor
    lam: torch.Tensor


class SolverSpaceScheduler(NoiseLevelScheduler):
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "beta_schedule": BETA_CHOICES,
        "prediction_type": ("epsilon", "sample", "v_prediction"),
        "timestep_spacing": SPACINGS,
        "solver_order": (1, 2, 3),
        "final_sigmas_type": ("zero", "sigma_min"),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
        "time_shift_type": ("exponential",),
    }

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        walk = self._spaced(steps) if timesteps is None else self._custom(timesteps, np.int64)
        levels, walk = self._levels(walk, steps)
        table = torch.from_numpy(np.append(levels, self._last_sigma(levels)).astype(np.float32))
        return Timetable(walk.astype(np.int64), {"sigmas": table})

    def _spaced(self, steps: int) -> np.ndarray:
        train, offset = self.settings["num_train_timesteps"], self.settings["steps_offset"]
        return solver_timesteps(self.settings["timestep_spacing"], steps, train, offset, self._last_timestep())

    def _last_timestep(self) -> int:
        """One past the noisiest timestep to visit: λ below ``lambda_min_clipped`` is left out."""
        lambdas = -np.log(self.training)[::-1]
        clipped = int(np.searchsorted(lambdas, self.settings.get("lambda_min_clipped", -np.inf)))
        return self.settings["num_train_timesteps"] - clipped

    def _ends(self, sigmas: np.ndarray, key: str) -> tuple[float, float]:
        # These classes place levels over the whole training range, not over the run's own.
        whole = self.training[::-1]
        return (float(whole[0]), float(whole[-1])) if key == "use_lu_lambdas" else super()._ends(whole, key)

    def _rounds(self, key: str) -> bool:
        return key == "use_karras_sigmas"

    def _last_sigma(self, levels: np.ndarray) -> float:
        return 0.0 if self.settings["final_sigmas_type"] == "zero" else float(self.training[0])

    def init_noise_sigma(self, state: SchedulerState) -> float:
        return 1.0

    def model_input(self, state: SchedulerState, sample: torch.Tensor) -> torch.Tensor:
        return sample

    def add_noise(
        self,
        state: SchedulerState,
        original: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """α·original + σ·noise at the state's own level; `timestep` is taken for the signature's sake and not read, as
        diffusers does once a begin index is set.
        """
        alpha, sigma, _ = level_of(state.sigmas[state.index].to(original.dtype))
        return alpha * original + sigma * noise

    def _level(self, state: SchedulerState, back: int = 0) -> Level:
        """The level `back` steps behind the state's own; −1 is where the next step lands."""
        return level_of(state.sigmas[state.index - back])


def level_of(ratio: torch.Tensor) -> Level:
    """From σ/α."""
    alpha = 1 / (ratio**2 + 1) ** 0.5
    sigma = ratio * alpha
    return Level(alpha, sigma, torch.log(alpha) - torch.log(sigma))
