"""Schedulers that look ᾱ up by training timestep: DDPM, DDIM, PNDM, LCM. The sample is √ᾱ·x₀ + √(1−ᾱ)·ε throughout."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import Scheduler, Timetable
from worker.engine.schedulers.noise_schedule import alphas_cumprod
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.timesteps import SPACINGS, spaced_timesteps

BETA_KEYS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}
CLIP_KEYS: Mapping[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLD_KEYS: Mapping[str, Any] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
SPACING_KEYS: Mapping[str, Any] = {"timestep_spacing": "leading", "steps_offset": 0}
BETA_CHOICES = ("linear", "scaled_linear", "squaredcos_cap_v2")


class AlphaSpaceScheduler(Scheduler):
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "beta_schedule": BETA_CHOICES,
        "prediction_type": ("epsilon", "sample", "v_prediction"),
        "timestep_spacing": SPACINGS,
    }

    alphas_cumprod: torch.Tensor
    """ᾱ by training timestep, float32 on the CPU."""

    def _constants(self) -> Mapping[str, torch.Tensor]:
        return {"alphas_cumprod": alphas_cumprod(self.settings)}

    def _timetable(self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> Timetable:
        train = self.settings["num_train_timesteps"]
        if steps > train:
            raise InvalidParameter("num_inference_steps", f"must be at most num_train_timesteps, {train}")
        spacing, offset = self.settings["timestep_spacing"], self.settings["steps_offset"]
        walk = spaced_timesteps(spacing, steps, train, offset)
        if walk[0] >= len(self.alphas_cumprod):
            rule = f"begins at timestep {walk[0]} of {len(self.alphas_cumprod)}: fewer steps or a smaller steps_offset"
            raise InvalidParameter("num_inference_steps", rule)
        return Timetable(walk, {})

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
        """√ᾱ·original + √(1−ᾱ)·noise; `timestep` is one number or one a row (arXiv:2006.11239, eq. 4)."""
        if timestep is None:
            timestep = self.timestep(state)
        at = torch.as_tensor(timestep).to("cpu", torch.int64).reshape(-1, *[1] * (original.ndim - 1))
        # In the sample's own precision, root included, as diffusers has it.
        bar = self.alphas_cumprod.to(original.dtype)[at].to(original.device)
        return bar**0.5 * original + (1 - bar) ** 0.5 * noise
