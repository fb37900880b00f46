"""Heun: Karras et al., arXiv:2206.00364, algorithm 1: an Euler step, then the same step with the mean of both slopes.

State: between its two evaluations a step holds (sample it began with, slope there).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from worker.engine.schedulers.alpha_space import BETA_CHOICES
from worker.engine.schedulers.base import NoiseSource, StepOutput, Timetable
from worker.engine.schedulers.predictions import bounded, denoised
from worker.engine.schedulers.sigma_space import PLACEMENT_KEYS, SIGMA_KEYS, SigmaSpaceScheduler, doubled
from worker.engine.schedulers.state import SchedulerState


class HeunDiscreteScheduler(SigmaSpaceScheduler):
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        **SIGMA_KEYS,
        **PLACEMENT_KEYS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "clip_sample_range": 1.0,
    }
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **SigmaSpaceScheduler.CHOICES,
        "beta_schedule": (*BETA_CHOICES, "exp"),
    }
    CUSTOM: ClassVar[frozenset[str]] = frozenset({"timesteps"})
    order: ClassVar[int] = 2

    def _interleave(self, sigmas: np.ndarray, walk: np.ndarray) -> Timetable:
        timesteps = np.concatenate([walk[:1], walk[1:].repeat(2)]).astype(np.float32)
        return Timetable(timesteps, {"sigmas": doubled(sigmas)})

    def _advance(
        self, state: SchedulerState, model_output: torch.Tensor, sample: torch.Tensor, noise: NoiseSource
    ) -> StepOutput:
        here = state.sigmas[state.index]
        clean = bounded(self.settings, denoised(self.settings["prediction_type"], model_output, sample, here))
        slope = (sample - clean) / here
        if not state.held:
            stride = state.sigmas[state.index + 1] - here
            return StepOutput(state.advance(held=(sample, slope)), sample + slope * stride, clean)
        origin, first = state.held
        stride = here - state.sigmas[state.index - 1]
        return StepOutput(state.advance(held=()), origin + (first + slope) / 2 * stride, clean)
