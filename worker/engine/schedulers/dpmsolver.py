"""What both DPM-Solver classes share: their keys, and the model's output in the form the variant integrates.

Lu et al., "DPM-Solver", arXiv:2206.00927, and "DPM-Solver++", arXiv:2211.01095.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource
from worker.engine.schedulers.ddpm import DEVIATIONS, LEARNED
from worker.engine.schedulers.exponential_integrator import INTEGRATORS
from worker.engine.schedulers.predictions import bounded, predicted_clean, predicted_noise
from worker.engine.schedulers.solver_space import SOLVER_KEYS, SolverSpaceScheduler
from worker.engine.schedulers.state import SchedulerState

DPMSOLVER_KEYS: Mapping[str, Any] = {
    **SOLVER_KEYS,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
}


class DPMSolverScheduler(SolverSpaceScheduler):
    """Of ``variance_type`` only the learned ones matter, which double the model's output channels."""

    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SolverSpaceScheduler.CHOICES,
        "algorithm_type": tuple(INTEGRATORS),
        "solver_type": ("midpoint", "heun"),
        "variance_type": (None, *DEVIATIONS),
    }
    ALIASES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
    CUSTOM: ClassVar[frozenset[str]] = frozenset({"timesteps"})

    def _refuse(self, values: Mapping[str, Any]) -> None:
        super()._refuse(values)
        named = values.get("algorithm_type", self.settings["algorithm_type"])
        if not named.endswith("++") and self.settings["final_sigmas_type"] == "zero":
            rule = f"'zero' would divide by 0 with algorithm_type {named!r}: use 'sigma_min', or a ++ algorithm"
            raise InvalidParameter("final_sigmas_type", rule)

    def _check_shapes(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        if self.settings["variance_type"] not in LEARNED:
            return super()._check_shapes(model_output, sample)
        rows, channels, *size = sample.shape
        if model_output.shape != (rows, 2 * channels, *size):
            rule = f"must have twice the sample's {channels} channels for a learned variance_type"
            raise InvalidParameter("model_output", rule)

    @property
    def _plus(self) -> bool:
        """Whether the variant integrates x₀ rather than ε."""
        return self.settings["algorithm_type"].endswith("++")

    def _convert(self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """x₀ or ε, whichever the variant integrates; the solver has no use for a predicted variance."""
        kind, here = self.settings["prediction_type"], self._level(state)
        model_output = model_output[:, : sample.shape[1]]
        if self._plus:
            return bounded(self.settings, predicted_clean(kind, model_output, sample, here.alpha, here.sigma))
        epsilon = predicted_noise(kind, model_output, sample, here.alpha, here.sigma)
        if not self.settings["thresholding"]:
            return epsilon
        clean = bounded(self.settings, (sample - here.sigma * epsilon) / here.alpha)
        return (sample - here.alpha * clean) / here.sigma

    def _noise(self, noise: NoiseSource, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """A step's fresh noise; None for the ODE variants."""
        return noise.like(like, dtype) if self.settings["algorithm_type"].startswith("sde") else None
