"""DEIS: Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv:2204.13902, the
multistep method over log ρ (ρAB-DEIS), ρ = σ/α.

State: `history` holds up to ``solver_order`` ε.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.predictions import bounded, predicted_clean
from worker.engine.schedulers.solver_space import FEW_STEPS, SOLVER_KEYS, SPACING_KEYS, SolverSpaceScheduler
from worker.engine.schedulers.state import SchedulerState


class DEISMultistepScheduler(SolverSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SOLVER_KEYS,
        **SPACING_KEYS,
        "algorithm_type": "deis",
        "solver_type": "logrho",
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SolverSpaceScheduler.CHOICES,
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
    }
    ALIASES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"},
    }

    def _last_sigma(self, levels: np.ndarray) -> float:
        """The run ends at the smallest level there is; a placed run at its own smallest."""
        return float(self.training[0]) if self._placement() is None else float(levels[-1])

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        here, there = self._level(state), self._level(state, -1)
        kind = self.settings["prediction_type"]
        clean = bounded(self.settings, predicted_clean(kind, model_output, sample, here.alpha, here.sigma))
        epsilon = (sample - here.alpha * clean) / here.sigma
        history = (*state.history, epsilon)[-self.settings["solver_order"] :]
        order = self._step_order(state)
        if order == 1:
            growth = torch.exp(there.lam - here.lam) - 1.0
            previous = there.alpha / here.alpha * sample - there.sigma * growth * epsilon
        else:
            levels = [self._level(state, back) for back in range(-1, order)]
            weights = integrated_basis([level.sigma / level.alpha for level in levels])
            previous = sample / here.alpha
            for weight, value in zip(weights, reversed(history), strict=False):
                previous = previous + weight * value
            previous = there.alpha * previous
        return StepOutput(state.advance(history=history), previous, clean)

    def _step_order(self, state: SchedulerState) -> int:
        steps = len(state.timesteps)
        left = steps - state.index if self.settings["lower_order_final"] and steps < FEW_STEPS else 3
        return min(self.settings["solver_order"], state.steps_done + 1, left)


def integrated_basis(rhos: list[torch.Tensor]) -> list[torch.Tensor]:
    """Newest first: ∫ of each Lagrange basis polynomial in log ρ, over ρ from ``rhos[1]`` to ``rhos[0]``; its nodes are
    ``rhos[1:]``, two or three.
    """
    end, *nodes = rhos
    weights = []
    for k, node in enumerate(nodes):
        # Cyclic order after the node: the sums below are float32, and round as diffusers' do.
        others = [_log(nodes[(k + j) % len(nodes)]) for j in range(1, len(nodes))]
        scale = torch.stack([_log(node) - other for other in others]).prod()
        antiderivative = (_linear, _quadratic)[len(others) - 1]
        weights.append(antiderivative(end, *others) / scale - antiderivative(nodes[0], *others) / scale)
    return weights


def _log(rho: torch.Tensor) -> torch.Tensor:
    # numpy's, as diffusers has it: the two libraries differ in the last bit, which the differences of `_quadratic`
    # magnify a thousandfold.
    return torch.as_tensor(np.log(rho.numpy()))


def _linear(rho: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """∫ (log ρ − c) dρ."""
    return rho * (-c + _log(rho) - 1)


def _quadratic(rho: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """∫ (log ρ − c)(log ρ − d) dρ."""
    log = _log(rho)
    return rho * (c * (d - log + 1) - d * log + d + log**2 - 2 * log + 2)
