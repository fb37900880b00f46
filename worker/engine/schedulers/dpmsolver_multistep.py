"""DPM-Solver, multistep: derivatives of the model's value come from earlier steps (Lu et al., arXiv:2211.01095,
algorithm 2; the third order continues it by one divided difference).

State: `history` holds up to ``solver_order`` converted model outputs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.dpmsolver import DPMSOLVER_KEYS, DPMSolverScheduler
from worker.engine.schedulers.exponential_integrator import integrate
from worker.engine.schedulers.solver_space import FEW_STEPS, SPACING_KEYS
from worker.engine.schedulers.state import SchedulerState


class DPMSolverMultistepScheduler(DPMSolverScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **DPMSOLVER_KEYS,
        **SPACING_KEYS,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "rescale_betas_zero_snr": False,
    }
    TAKES: ClassVar[frozenset[str]] = frozenset({"variance_noise"})

    def _refuse(self, values: Mapping[str, Any]) -> None:
        super()._refuse(values)
        if self.settings["algorithm_type"] == "sde-dpmsolver" and self.settings["solver_order"] > 2:
            raise InvalidParameter("solver_order", "must be 1 or 2 for sde-dpmsolver, which has no third order")

    def _rounds(self, key: str) -> bool:
        return key in ("use_karras_sigmas", "use_lu_lambdas") and self.settings["beta_schedule"] != "squaredcos_cap_v2"

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        value = self._convert(state, model_output, sample)
        history = (*state.history, value)[-self.settings["solver_order"] :]
        levels = [self._level(state, back) for back in range(-1, self._step_order(state))]
        there, here = levels[:2]
        previous = integrate(
            self.settings["algorithm_type"],
            here,
            there,
            sample.float(),
            backward_differences(levels, history),
            # The third order knows one way to weigh its first difference.
            midpoint=self.settings["solver_type"] == "midpoint" and len(levels) < 4,
            noise=self._noise(noise, value, torch.float32),
        )
        clean = value if self._plus else None
        return StepOutput(state.advance(history=history), previous.to(value.dtype), clean)

    def _step_order(self, state: SchedulerState) -> int:
        """Of this step: as many outputs as there are, less towards the end where the settings say so."""
        steps, settings = len(state.timesteps), self.settings
        left = steps - state.index
        lower = settings["lower_order_final"] and steps < FEW_STEPS
        if left == 1 and (lower or settings["euler_at_final"] or settings["final_sigmas_type"] == "zero"):
            return 1
        return min(settings["solver_order"], state.steps_done + 1, left if lower else 3)


def backward_differences(levels: list[Any], history: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """(D₀[, D₁[, D₂]]) at the newest of `history`, scaled by the step's h, from as many values as `levels` (newest
    first, beginning with where the step lands) has behind it.
    """
    there, here, *earlier = levels
    h = there.lam - here.lam
    if not earlier:
        return (history[-1],)
    ratio = (here.lam - earlier[0].lam) / h
    slope = 1.0 / ratio * (history[-1] - history[-2])
    if len(earlier) == 1:
        return history[-1], slope
    ratio_before = (earlier[0].lam - earlier[1].lam) / h
    change = slope - 1.0 / ratio_before * (history[-2] - history[-3])
    spread = ratio + ratio_before
    return history[-1], slope + ratio / spread * change, 1.0 / spread * change
