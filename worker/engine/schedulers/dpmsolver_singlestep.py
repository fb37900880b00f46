"""DPM-Solver, singlestep: a step of order k is k model evaluations, each from where the step began (Lu et al.,
arXiv:2206.00927, algorithms 1 and 2; their x₀ form in arXiv:2211.01095).

State: `history` holds up to ``solver_order`` converted model outputs, `held` the sample that the step began with.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.dpmsolver import DPMSOLVER_KEYS, DPMSolverScheduler
from worker.engine.schedulers.exponential_integrator import integrate
from worker.engine.schedulers.solver_space import Level
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.timesteps import solver_timesteps


class DPMSolverSinglestepScheduler(DPMSolverScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**DPMSOLVER_KEYS, "lower_order_final": False}
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **DPMSolverScheduler.CHOICES,
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
    }

    def _spaced(self, steps: int) -> np.ndarray:
        return solver_timesteps("linspace", steps, self.settings["num_train_timesteps"], 0, self._last_timestep())

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        value = self._convert(state, model_output, sample)
        history = (*state.history, value)[-self.settings["solver_order"] :]
        # A run that begins inside a step (strength < 1) has not its earlier evaluations.
        order = min(self._order_list(len(state.timesteps))[state.index], len(history))
        origin = sample if order == 1 else state.held[0]
        midpoint = self.settings["solver_type"] == "midpoint"
        levels = [self._level(state, back) for back in range(-1, order)]
        previous = integrate(
            self.settings["algorithm_type"],
            levels[-1],
            levels[0],
            origin,
            forward_differences(levels, history, midpoint=midpoint),
            midpoint=midpoint and order < 3,
            noise=self._noise(noise, value, value.dtype),
        )
        return StepOutput(state.advance(history=history, held=(origin,)), previous, value if self._plus else None)

    def _order_list(self, steps: int) -> list[int]:
        """Order by evaluation: 1, 2[, 3] over and over, cut so that the run ends on a whole step, and on a first-order
        one where ``lower_order_final`` asks for it or the settings leave no choice.
        """
        order = self.settings["solver_order"]
        to_zero = self.settings["final_sigmas_type"] == "zero"
        cycle = list(range(1, order + 1))
        orders = (cycle * (steps // order + 1))[:steps]
        if self.settings["lower_order_final"] or to_zero or steps % order:
            if order == 3 and steps % 3 == 0:
                orders[-3:] = [1, 2, 1]
            elif order == 2 and steps % 2 == 0:
                orders[-1] = 1
        if to_zero:
            orders[-1] = 1
        return orders


def forward_differences(
    levels: list[Level], history: tuple[torch.Tensor, ...], *, midpoint: bool
) -> tuple[torch.Tensor, ...]:
    """(D₀[, D₁[, D₂]]) at the oldest of `levels` (newest first, beginning with where the step lands), scaled by the
    step's h. The midpoint form of the third order leaves D₂ out and takes D₁ over the widest interval.
    """
    there, *evaluated = levels
    h = there.lam - evaluated[-1].lam
    values = history[-len(evaluated) :]
    if len(evaluated) == 1:
        return values
    far = (evaluated[0].lam - evaluated[-1].lam) / h
    wide = 1.0 / far * (values[-1] - values[0])
    if len(evaluated) == 2 or midpoint:
        return values[0], wide
    near = (evaluated[1].lam - evaluated[2].lam) / h
    narrow = 1.0 / near * (values[1] - values[0])
    slope = (far * narrow - near * wide) / (far - near)
    return values[0], slope, 2.0 * (wide - narrow) / (far - near)
