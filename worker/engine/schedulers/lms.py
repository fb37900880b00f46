"""LMS: linear multistep integration over σ, after Crowson's k-diffusion ("sample_lms"); the ODE is that of Karras et
al. (arXiv:2206.00364, eq. 1), the method Adams-Bashforth on an uneven grid (Hairer et al., Solving ODEs I, III.5).

State: `history` holds up to four derivatives dx/dσ.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.predictions import denoised
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, SIGMA_KEYS, SigmaSpaceScheduler
from worker.engine.schedulers.state import SchedulerState

MAX_ORDER = 4


class LMSDiscreteScheduler(SigmaSpaceScheduler):
    """`step` also takes ``order`` in 1..4, the number of derivatives to look back on."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {**SIGMA_KEYS, **PLACEMENT_KEYS}

    def _ends(self, sigmas: np.ndarray, key: str) -> tuple[float, float]:
        # In this class diffusers reads a sister's sigma_min and sigma_max for every placement but Karras's.
        if key == "use_karras_sigmas":
            return float(sigmas[0]), float(sigmas[-1])
        return super()._ends(sigmas, key)

    def _advance(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        noise: NoiseSource,
        *,
        order: int = MAX_ORDER,
    ) -> StepOutput:
        if order not in range(1, MAX_ORDER + 1):
            raise InvalidParameter("order", f"must be 1 to {MAX_ORDER}, not {order!r}")
        sigma = state.sigmas[state.index]
        clean = denoised(self.settings["prediction_type"], model_output, sample, sigma)
        history = (*state.history, (sample - clean) / sigma)[-order:]
        # A run that begins late (strength < 1) has fewer derivatives behind it than its index says. diffusers takes the
        # weights by the index all the same and drops those without a derivative, and so do its pictures.
        weights = multistep_weights(state.sigmas, state.index, min(state.index + 1, order))
        change = sum(weight * slope for weight, slope in zip(weights, reversed(history), strict=False))
        return StepOutput(state.advance(history=history), sample + change, clean)


def multistep_weights(sigmas: torch.Tensor, index: int, order: int) -> list[float]:
    """Newest first: the integral of each Lagrange basis polynomial over σ from entry `index` to the next.

    Two Gauss-Legendre points integrate a cubic exactly, and `order` is at most four.
    """
    grid = sigmas.numpy().astype(np.float64)
    start, end = grid[index], grid[index + 1]
    points, shares = np.polynomial.legendre.leggauss(2)
    at = (start + end) / 2 + (end - start) / 2 * points
    weights = []
    for k in range(order):
        others = [grid[index - j] for j in range(order) if j != k]
        basis = np.prod([(at - other) / (grid[index - k] - other) for other in others], axis=0)
        weights.append(float(np.sum(shares * basis) * (end - start) / 2))
    return weights
