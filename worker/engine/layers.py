"""The convolutional half of Stable Diffusion: residual blocks, resampling, and the embedding of time.

Ho et al. 2020 (https://arxiv.org/abs/2006.11239) for the residual block and the sinusoidal embedding, Rombach et al.
2022 (https://arxiv.org/abs/2112.10752) for how they are put together. Parameter names are diffusers'.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.conditions import TimeStates


def sinusoidal_embedding(timesteps: Tensor, width: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5, over time instead of position.

    `timesteps`: [B], fractions allowed. Returns [B, width] in float32: sines then cosines of the timestep times
    10000^(−i / (width/2 − freq_shift)), the halves exchanged if `flip_sin_to_cos`, a zero at the end if `width` is odd.
    """
    half = width // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(exponents / (half - freq_shift))[None, :]
    waves = (torch.cos(angles), torch.sin(angles)) if flip_sin_to_cos else (torch.sin(angles), torch.cos(angles))
    return F.pad(torch.cat(waves, dim=-1), (0, width % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers on the sinusoidal embedding: [B, width] → [B, out_width].

    With `condition_width` a condition [B, condition_width] is projected and added first: the guidance embedding of
    Meng et al. 2023 (https://arxiv.org/abs/2210.03142).
    """

    def __init__(self, width: int, out_width: int, condition_width: int | None = None):
        super().__init__()
        self.linear_1 = nn.Linear(width, out_width)
        self.linear_2 = nn.Linear(out_width, out_width)
        self.cond_proj = None if condition_width is None else nn.Linear(condition_width, width, bias=False)

    def forward(self, waves: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None and self.cond_proj is not None:
            waves = waves + self.cond_proj(condition)
        return self.linear_2(F.silu(self.linear_1(waves)))


class ResnetBlock2D(nn.Module):
    """(shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + W time)))) / divisor: [B, in, h, w] → [B, out, h, w].

    `time` [B, time_width] comes activated, since every block of a network takes the same silu of it, or projected
    already, and then this block's part is at its `place` among the network's. With `time_width` None no time enters
    (the autoencoder). The 1×1 shortcut exists only where the width changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
        dropout: float = 0.0,
        divisor: float = 1.0,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.divisor = divisor
        self.place: int | None = None  # for the network to set

    def forward(self, x: Tensor, time: Tensor | TimeStates | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            shift = time.of(self.place) if isinstance(time, TimeStates) else self.time_emb_proj(time)
            hidden = hidden + shift[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        total = shortcut + hidden
        return total if self.divisor == 1 else total / self.divisor


class Downsample2D(nn.Module):
    """Halve height and width by a strided 3×3 convolution.

    With `padding` 0 a row and a column of zeros are put at the bottom and right alone, as the autoencoder was trained.
    """

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad_after = padding == 0

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_after else x)


class Upsample2D(nn.Module):
    """Nearest neighbour to `size` (h, w), or to twice the size, then a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
