"""PNDM: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv:2202.09778.

Four steps of a pseudo Runge-Kutta method (PRK, four evaluations each) would warm the linear multistep method (PLMS)
up; with ``skip_prk_steps`` PLMS warms itself up, evaluating the second timestep twice.

State: `history` holds the last ε of each step, at most four. `held` holds the sample that a step of several
evaluations began with, and, inside PRK, the weighted sum of its evaluations so far.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.alpha_space import BETA_KEYS, SPACING_KEYS, AlphaSpaceScheduler
from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.predictions import predicted_noise
from worker.engine.schedulers.state import SchedulerState

PRK_EVALUATIONS = 12  # three whole steps of four; the fourth PRK timestep is PLMS's first
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDMScheduler(AlphaSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **BETA_KEYS,
        **SPACING_KEYS,
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
        "prediction_type": "epsilon",
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AlphaSpaceScheduler.CHOICES,
        "prediction_type": ("epsilon", "v_prediction"),
    }

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        walk = np.asarray(super()._timetable(steps, timesteps, sigmas).timesteps)
        if self.settings["skip_prk_steps"]:
            return Timetable(np.concatenate([walk[:1], walk[1:2], walk[1:]]), {})
        if steps < 4:
            raise InvalidParameter("num_inference_steps", "must be at least 4 unless skip_prk_steps is set")
        # Of each PRK step: its timestep, the point halfway to the next one twice, and the next one twice.
        half = self.settings["num_train_timesteps"] // steps // 2
        points = np.stack([walk[:4] + half, walk[:4]], axis=1).reshape(-1)[1:]
        return Timetable(np.concatenate([points.repeat(2)[1:-1], walk[3:]]), {})

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        if not self.settings["skip_prk_steps"] and state.steps_done < PRK_EVALUATIONS:
            return self._runge_kutta(state, model_output, sample)
        return self._multistep(state, model_output, sample)

    def _runge_kutta(self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor) -> StepOutput:
        """The four evaluations land at half, half, whole and whole stride from where the step began."""
        stage = state.steps_done % 4
        half = self._stride(state) // 2
        begin = int(state.timesteps[state.steps_done - stage])
        end = int(state.timesteps[state.index]) - (0 if stage % 2 else half)
        history = (*state.history, model_output) if stage == 0 else state.history
        origin = sample if stage == 0 else state.held[0]
        weighted = RUNGE_KUTTA[stage] * model_output
        total = weighted if stage == 0 else state.held[1] + weighted
        held = () if stage == 3 else (origin, total)
        previous = self._transfer(origin, begin, end, total if stage == 3 else model_output)
        return StepOutput(state.advance(history=history, held=held), previous)

    def _multistep(self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor) -> StepOutput:
        """ε extrapolated from up to four evaluations, then one transfer."""
        begin = int(state.timesteps[state.index])
        end = begin - self._stride(state)
        if state.steps_done == 1:
            # The first step again, now with the slope at its end known as well.
            origin, averaged = state.held[0], (model_output + state.history[-1]) / 2
            previous = self._transfer(origin, begin + self._stride(state), begin, averaged)
            return StepOutput(state.advance(held=()), previous)
        history = (*state.history[-3:], model_output)
        held = (sample,) if state.steps_done == 0 else ()
        previous = self._transfer(sample, begin, end, adams_bashforth(history))
        return StepOutput(state.advance(history=history, held=held), previous)

    def _stride(self, state: SchedulerState) -> int:
        return self.settings["num_train_timesteps"] // state.num_inference_steps

    def _transfer(self, sample: torch.Tensor, begin: int, end: int, model_output: torch.Tensor) -> torch.Tensor:
        last = torch.tensor(1.0) if self.settings["set_alpha_to_one"] else self.alphas_cumprod[0]
        here, there = self.alphas_cumprod[begin], self.alphas_cumprod[end] if end >= 0 else last
        kind = self.settings["prediction_type"]
        epsilon = predicted_noise(kind, model_output, sample, here**0.5, (1 - here) ** 0.5)
        return transfer(sample, epsilon, here, there)


def transfer(sample: torch.Tensor, epsilon: torch.Tensor, here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The paper's φ: along ε from ᾱ `here` to ᾱ `there`, staying on the data's manifold."""
    spread = here * (1 - there) ** 0.5 + (here * (1 - here) * there) ** 0.5
    return (there / here) ** 0.5 * sample - (there - here) * epsilon / spread


def adams_bashforth(history: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Linear multistep extrapolation of one to four values, newest last (Adams-Bashforth)."""
    newest = history[::-1]
    if len(newest) == 1:
        return newest[0]
    if len(newest) == 2:
        return (3 * newest[0] - newest[1]) / 2
    if len(newest) == 3:
        return (23 * newest[0] - 16 * newest[1] + 5 * newest[2]) / 12
    return 1 / 24 * (55 * newest[0] - 59 * newest[1] + 37 * newest[2] - 9 * newest[3])
