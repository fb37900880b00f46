"""What is made small: how far a picture is from its reconstruction, and how far a prediction from its target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.vae import DiagonalGaussian


def reconstruction_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error, of slopes as well, at four sizes, and lost structure: [B, 3, H, W] each, in −1…1.

    The slopes keep edges sharp that plain error would blur; the structural term weighs contrast where there is little
    of it. No network that was trained elsewhere has a say in it.
    """
    total = 0.5 * (1 - structural_similarity(made, wanted))
    for scale in range(4):
        if scale:
            made, wanted = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
        total = total + F.l1_loss(made, wanted) * (1 + scale)  # a wrong colour is worse than a wrong texture
        for axis in (2, 3):
            total = total + F.l1_loss(made.diff(dim=axis), wanted.diff(dim=axis))
    return total


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean SSIM over windows of 7×7 (Wang et al. 2004, "Image quality assessment"), for pictures in −1…1."""
    stacked = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    mean_1, mean_2, square_1, square_2, product = F.avg_pool2d(stacked, 7, stride=2).chunk(5, dim=1)
    variance_1, variance_2, covariance = square_1 - mean_1**2, square_2 - mean_2**2, product - mean_1 * mean_2
    c1, c2 = 0.02**2, 0.06**2
    top = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return (top / ((mean_1**2 + mean_2**2 + c1) * (variance_1.clamp_min(0) + variance_2.clamp_min(0) + c2))).mean()


def divergence(latents: DiagonalGaussian) -> Tensor:
    """Kullback-Leibler divergence from N(0, 1), the mean over all latent values."""
    mean, log_variance = latents.moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-30.0, 20.0)
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def min_snr_weight(alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Weight of a v-prediction's squared error at each noise level [T] (Hang et al. 2023, arXiv:2303.09556).

    An error of v is (SNR + 1) times one of x₀, which the paper weighs by min(SNR, γ); one more is granted to every
    level, or those that are all noise would count for nothing.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr.clamp(max=gamma) + 1) / (snr + 1)
