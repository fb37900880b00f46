"""How much noise each training timestep carries: β, and ᾱ = ∏(1 − β) (Ho et al., DDPM, arXiv:2006.11239)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from worker.engine.errors import InvalidParameter

# Stands in for ᾱ = 0 at the last timestep where a later division by √ᾱ would make infinities; the smallest positive
# number of half precision.
TINY_ALPHA = 2.0**-24


def _linear(start: float, end: float, count: int) -> torch.Tensor:
    return torch.linspace(start, end, count, dtype=torch.float32)


def _scaled_linear(start: float, end: float, count: int) -> torch.Tensor:
    """Linear in √β: the schedule of latent diffusion (Rombach et al., arXiv:2112.10752)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2


def _sigmoid(start: float, end: float, count: int) -> torch.Tensor:
    """GeoDiff's schedule (Xu et al., arXiv:2203.02923)."""
    return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start


def _cosine_bar(t: float) -> float:
    """ᾱ of Nichol & Dhariwal (arXiv:2102.09672), eq. 17."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exponential_bar(t: float) -> float:
    return math.exp(t * -12.0)


def _laplace_bar(t: float) -> float:
    """ᾱ whose log-SNR is Laplace distributed (Hang & Gu, arXiv:2407.03297)."""
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _from_bar(bar: Callable[[float], float]) -> Callable[[float, float, int], torch.Tensor]:
    def betas(_start: float, _end: float, count: int) -> torch.Tensor:
        edges = [bar(i / count) for i in range(count + 1)]
        return torch.tensor([min(1 - edges[i + 1] / edges[i], 0.999) for i in range(count)], dtype=torch.float32)

    return betas


BETA_SCHEDULES: Mapping[str, Callable[[float, float, int], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _from_bar(_cosine_bar),
    "exp": _from_bar(_exponential_bar),
    "laplace": _from_bar(_laplace_bar),
    "sigmoid": _sigmoid,
}


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """β shifted and scaled so that √ᾱ ends at 0 and begins where it did (Lin et al., arXiv:2305.08891, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    bar = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def alphas_cumprod(settings: Mapping[str, Any], *, floor_terminal: bool = False) -> torch.Tensor:
    """ᾱ, ``[num_train_timesteps]`` float32, from a scheduler's own ``beta_*`` keys.

    `floor_terminal` keeps the last ᾱ above 0 after a zero-SNR rescale.
    Raises InvalidParameter when `trained_betas` is shorter than `num_train_timesteps`.
    """
    count, trained = settings["num_train_timesteps"], settings["trained_betas"]
    if trained is not None and len(trained) < count:
        raise InvalidParameter("trained_betas", f"has {len(trained)} entries for {count} num_train_timesteps")
    if trained is not None:
        betas = torch.tensor(trained, dtype=torch.float32)
    else:
        betas = BETA_SCHEDULES[settings["beta_schedule"]](settings["beta_start"], settings["beta_end"], count)
    rescaled = settings.get("rescale_betas_zero_snr", False)
    bar = torch.cumprod(1.0 - (rescale_zero_terminal_snr(betas) if rescaled else betas), dim=0)
    if rescaled and floor_terminal:
        bar[-1] = TINY_ALPHA
    return bar


def training_sigmas(alphas_bar: torch.Tensor) -> np.ndarray:
    """σ = √((1 − ᾱ)/ᾱ), ``[num_train_timesteps]`` float32, rising: noise over signal in the variance-exploding form."""
    return (((1 - alphas_bar) / alphas_bar) ** 0.5).numpy()
