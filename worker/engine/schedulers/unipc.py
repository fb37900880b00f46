"""UniPC: Zhao et al., "A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
arXiv:2302.04867; with B(h) = h ("bh1") or B(h) = e^h − 1 ("bh2").

The corrector needs no model evaluation of its own: it refines the sample a step began with, once the model's value
there is known.

State: `history` holds up to ``solver_order`` converted model outputs, `held` the sample that the last step began with.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import NoiseSource, StepOutput
from worker.engine.schedulers.predictions import bounded, predicted_clean, predicted_noise
from worker.engine.schedulers.solver_space import SOLVER_KEYS, SPACING_KEYS, Level, SolverSpaceScheduler
from worker.engine.schedulers.state import SchedulerState


class UniPCMultistepScheduler(SolverSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SOLVER_KEYS,
        **SPACING_KEYS,
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": (),
        "solver_p": None,
        "final_sigmas_type": "zero",
        "rescale_betas_zero_snr": False,
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **{key: held for key, held in SolverSpaceScheduler.CHOICES.items() if key != "solver_order"},  # any order
        "solver_type": ("bh1", "bh2"),
        "solver_p": (None,),
        "shift_terminal": (None,),
    }
    ALIASES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    }

    def _refuse(self, values: Mapping[str, Any]) -> None:
        super()._refuse(values)
        settings = self.settings
        ends_at_zero = settings["final_sigmas_type"] == "zero"
        if ends_at_zero and settings["solver_order"] > 1 and not settings["lower_order_final"]:
            rule = "must be true with final_sigmas_type 'zero', a step that only the first order can make"
            raise InvalidParameter("lower_order_final", rule)

    def _last_sigma(self, levels: np.ndarray) -> float:
        if self.settings["final_sigmas_type"] == "sigma_min" and self._placement() is not None:
            return float(levels[-1])
        return super()._last_sigma(levels)

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        value = self._convert(state, model_output, sample)
        if state.held and state.index - 1 not in self.settings["disable_corrector"]:
            order = self._step_order(state, state.index - 1)
            levels = [self._level(state, back) for back in range(order + 1)]
            sample = self._update(levels, state.held[0], state.history, value)
        history = (*state.history, value)[-self.settings["solver_order"] :]
        levels = [self._level(state, back) for back in range(-1, self._step_order(state, state.index))]
        previous = self._update(levels, sample, history, None)
        clean = value if self.settings["predict_x0"] else None
        return StepOutput(state.advance(history=history, held=(sample,)), previous, clean)

    def _convert(self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        kind, here = self.settings["prediction_type"], self._level(state)
        if self.settings["predict_x0"]:
            return bounded(self.settings, predicted_clean(kind, model_output, sample, here.alpha, here.sigma))
        return predicted_noise(kind, model_output, sample, here.alpha, here.sigma)

    def _step_order(self, state: SchedulerState, index: int) -> int:
        """Of the step at `index`: as many outputs as there were, less towards the end where the settings say so."""
        left = len(state.timesteps) - index if self.settings["lower_order_final"] else self.settings["solver_order"]
        return min(self.settings["solver_order"], index - state.begin_index + 1, left)

    def _update(
        self, levels: list[Level], sample: torch.Tensor, history: tuple[torch.Tensor, ...], landed: torch.Tensor | None
    ) -> torch.Tensor:
        """`sample` at ``levels[1]`` carried to ``levels[0]``: predicted from `history`, or corrected by the model's
        value `landed` there. The order is the number of levels behind ``levels[0]``.
        """
        there, here, *earlier = levels
        forward = there.lam - here.lam
        h = -forward if self.settings["predict_x0"] else forward
        ratios = [(level.lam - here.lam) / forward for level in earlier]
        values = history[::-1]
        differences = [(value - values[0]) / ratio for value, ratio in zip(values[1:], ratios, strict=False)]
        scale = h if self.settings["solver_type"] == "bh1" else torch.expm1(h)
        if landed is None:
            weights = predictor_weights(ratios, h, scale)
        else:
            weights = corrector_weights(ratios, h, scale)
            differences.append(landed - values[0])
        if self.settings["predict_x0"]:
            keep, size = there.sigma / here.sigma, there.alpha
        else:
            keep, size = there.alpha / here.alpha, there.sigma
        carried = keep * sample - size * torch.expm1(h) * values[0]
        if differences:
            correction = sum(weight.to(sample.dtype) * d for weight, d in zip(weights, differences, strict=True))
            carried = carried - size * scale * correction
        return carried.to(sample.dtype)


def predictor_weights(ratios: list[torch.Tensor], h: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """ρ^p of UniP, one for each earlier output; the second order has ½ whatever h is."""
    if not ratios:
        return torch.zeros(0)
    if len(ratios) == 1:
        return torch.tensor([0.5])
    matrix, moments = order_conditions([*ratios, torch.ones(())], h, scale)
    return torch.linalg.solve(matrix[:-1, :-1], moments[:-1])


def corrector_weights(ratios: list[torch.Tensor], h: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """ρ^c of UniC: as the predictor's, with one more for the value where the step lands."""
    if not ratios:
        return torch.tensor([0.5])
    return torch.linalg.solve(*order_conditions([*ratios, torch.ones(())], h, scale))


def order_conditions(
    ratios: list[torch.Tensor], h: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, b) of the linear system for ρ: row k holds the ratios to the power k, and
    b_k = (k + 1)!·h·φ_{k+2}(h)/B(h), with φ from its recurrence φ_{k+1} = (φ_k − 1/k!)/h.
    """
    nodes = torch.stack(ratios)
    rows, moments = [], []
    phi, factorial = torch.expm1(h) / h - 1, 1
    for power in range(len(ratios)):
        rows.append(nodes**power)
        moments.append(phi * factorial / scale)
        factorial *= power + 2
        phi = phi / h - 1 / factorial
    return torch.stack(rows), torch.stack(moments)
