"""How the networks begin. torch's own way lets a signal shrink at every convolution until the biases drown it.

Measured on the autoencoder: after 250 steps of eight 32-pixel crops the mean colour of 8×8 pixels was off by 0.24 as
torch begins and by 0.07 as is done here (of a range of 2).
"""

from __future__ import annotations

from torch import nn

from worker.engine.attention import Transformer2DModel
from worker.engine.layers import ResnetBlock2D


def initialise(network: nn.Module) -> None:
    """Convolutions keep the length of what they carry (orthogonal; Saxe et al. 2013, arXiv:1312.6120) and begin
    without biases; what is added to a shortcut begins as nothing (Zhang et al. 2019, arXiv:1901.09321)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Transformer2DModel):
            nn.init.zeros_(module.proj_out.weight)
