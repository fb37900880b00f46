"""What a model's output says about the clean sample: ε-, x₀- and v-prediction, and the bounds put on x₀.

Everywhere ``x = signal·x₀ + noise·ε``; scalars are 0-d float32 tensors, samples ``[B, C, h, w]`` of any float type.
v-prediction is Salimans & Ho's (arXiv:2202.00512, appendix D).
"""

from collections.abc import Mapping
from typing import Any

import torch


def predicted_clean(
    kind: str, model_output: torch.Tensor, sample: torch.Tensor, signal: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """x₀ in the variance-preserving form, signal² + noise² = 1."""
    if kind == "epsilon":
        return (sample - noise * model_output) / signal
    if kind == "v_prediction":
        return signal * sample - noise * model_output
    return model_output


def predicted_noise(
    kind: str, model_output: torch.Tensor, sample: torch.Tensor, signal: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """ε in the variance-preserving form."""
    if kind == "sample":
        return (sample - signal * model_output) / noise
    if kind == "v_prediction":
        return signal * model_output + noise * sample
    return model_output


def denoised(kind: str, model_output: torch.Tensor, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x₀ in the variance-exploding form, signal = 1 and noise = `sigma` (Karras et al., arXiv:2206.00364)."""
    if kind == "epsilon":
        return sample - sigma * model_output
    if kind == "v_prediction":
        return model_output * (-sigma / (sigma**2 + 1) ** 0.5) + sample / (sigma**2 + 1)
    return model_output


def dynamic_threshold(sample: torch.Tensor, ratio: float, limit: float) -> torch.Tensor:
    """Each image clamped to its own `ratio`-quantile of |x₀|, at least 1 and at most `limit`, then divided by it
    (Saharia et al., Imagen, arXiv:2205.11487, section 2.3).
    """
    wide = sample if sample.dtype in (torch.float32, torch.float64) else sample.float()
    rows = wide.flatten(1)
    bound = torch.quantile(rows.abs(), ratio, dim=1).clamp(min=1, max=limit)[:, None]
    return (rows.clamp(-bound, bound) / bound).reshape(sample.shape).to(sample.dtype)


def bounded(settings: Mapping[str, Any], clean: torch.Tensor) -> torch.Tensor:
    """x₀ as a scheduler's own ``thresholding`` or ``clip_sample`` keys bound it."""
    if settings.get("thresholding", False):
        return dynamic_threshold(clean, settings["dynamic_thresholding_ratio"], settings["sample_max_value"])
    if settings.get("clip_sample", False):
        return clean.clamp(-settings["clip_sample_range"], settings["clip_sample_range"])
    return clean
