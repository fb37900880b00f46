"""Encoder and decoder of the autoencoder: Esser et al. 2021 (https://arxiv.org/abs/2012.09841), without the codebook.

Like the UNet's blocks they take their widths from a table; unlike them they know neither time nor text.
"""

import re
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention import Attention
from worker.engine.layers import Downsample2D, ResnetBlock2D, Upsample2D

_EPS = 1e-6  # of every norm in here

# Checkpoints older than diffusers 0.17, those of Stable Diffusion 1.5 among them, call the attention's layers so.
_OLD_LAYERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=mid_block\.attentions\.0\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an autoencoder of any age under today's names."""
    return {_OLD_NAME.sub(lambda match: _OLD_LAYERS[match[0]], name): tensor for name, tensor in tensors.items()}


class PixelAttention(Attention):
    """Self-attention of one head over all pixels, added to its input: [B, C, h, w] → the same shape."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, head_width=channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)
        return super().forward(tokens).transpose(1, 2).reshape(x.shape) + x


class MidBlock(nn.Module):
    """Residual block, attention (unless left out), residual block."""

    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, groups=groups, eps=_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownEncoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, resample: bool):
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if resample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpDecoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, resample: bool):
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if resample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """[B, in_channels, H, W] → the moments [B, 2 · latent_channels, H/2ⁿ, W/2ⁿ], n one less than the levels."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        widths: tuple[int, ...],
        layers: int,
        groups: int,
        attention: bool = True,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        entering = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock(before, width, layers, groups, resample=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip(entering, widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """The way back: [B, latent_channels, h, w] → [B, out_channels, 2ⁿ h, 2ⁿ w]."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        widths: tuple[int, ...],
        layers: int,
        groups: int,
        attention: bool = True,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(widths[-1], groups, attention)
        leaving = widths[::-1]
        entering = (leaving[0], *leaving[:-1])
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock(before, width, layers + 1, groups, resample=level < len(widths) - 1)
            for level, (before, width) in enumerate(zip(entering, leaving, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], _EPS)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _resnets(in_channels: int, out_channels: int, layers: int, groups: int) -> nn.ModuleList:
    entering = (in_channels, *[out_channels] * (layers - 1))
    return nn.ModuleList(ResnetBlock2D(width, out_channels, groups=groups, eps=_EPS) for width in entering)
