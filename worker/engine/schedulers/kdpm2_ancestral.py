"""KDPM2 with ancestral noise: DPM-Solver-2 (Lu et al., arXiv:2206.00927) down to below the target, then fresh noise,
after Crowson's k-diffusion ("sample_dpm_2_ancestral").

State: as KDPM2's.
"""

from collections.abc import Mapping

import torch

from worker.engine.schedulers.base import NoiseSource
from worker.engine.schedulers.euler_ancestral import ancestral_split
from worker.engine.schedulers.kdpm2 import KDPM2DiscreteScheduler, log_midpoint
from worker.engine.schedulers.state import SchedulerState


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    def _inner_tables(self, levels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        down, up = ancestral_split(levels[:-1], levels[1:])
        # A fall of many thousandfold rounds σ_down to 0, which has no logarithm; the closed form does not.
        down = torch.where(down > 0, down, levels[1:] ** 2 / levels[:-1])
        midpoints = log_midpoint(levels[:-1], down)
        midpoints[-1] = 0.0  # the last step has one evaluation, which goes all the way
        return {"midpoints": midpoints, "down": down, "up": up}

    def _land(
        self,
        state: SchedulerState,
        origin: torch.Tensor,
        slope: torch.Tensor,
        model_output: torch.Tensor,
        noise: NoiseSource,
    ) -> torch.Tensor:
        step = state.index // 2
        landed = origin + slope * (state.tables["down"][step] - state.sigmas[state.index - 1])
        return landed + noise.like(model_output) * state.tables["up"][step]
