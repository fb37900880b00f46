"""Random weights that paint: smooth patches of colour instead of grey noise.

A 3×3 convolution mixes channels at random and blurs in space (a binomial kernel), so that what the network draws has
no detail finer than its blur; everything else keeps a signal's variance (LeCun et al. 1998, "Efficient BackProp").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BLUR = torch.tensor([1.0, 2.0, 1.0]) / 4


def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of `network` anew, in the order of its state dict."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(_drawn(name, parameter.shape, generator))


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        scales = name.endswith("weight")  # of a norm; every other vector is a bias
        return 1.0 * scales + 0.1 * torch.randn(shape, generator=generator)
    mixing = torch.randn(shape[:2], generator=generator) / shape[1] ** 0.5
    if len(shape) == 2:
        return mixing
    kernel = torch.outer(_BLUR, _BLUR) if shape[2] == 3 else torch.ones(shape[2:])
    return mixing[:, :, None, None] * kernel
