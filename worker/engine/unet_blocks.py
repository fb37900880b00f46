"""The UNet's three kinds of block, each built from one row of the table in `unet_spec`.

Feature maps are [B, C, h, w], `time` is [B, time_width] and already activated, `context` [B, L, D] is the text; or
each is what the layers make of it, made beforehand (`conditions`).
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from worker.engine.attention import Context, Transformer2DModel
from worker.engine.conditions import TimeStates
from worker.engine.config import Config
from worker.engine.freeu import FreeU
from worker.engine.ip_attention import ImagePrompt
from worker.engine.layers import Downsample2D, ResnetBlock2D, Upsample2D
from worker.engine.unet_spec import BlockSpec

Images: TypeAlias = Sequence[ImagePrompt]
Time: TypeAlias = Tensor | TimeStates


class _Block(nn.Module):
    """Residual blocks, each followed by a transformer where the row has one. No `attentions` key where it has none."""

    def __init__(self, spec: BlockSpec, config: Config, time_width: int, transformers: int, divisor: float = 1.0):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                channels,
                spec.out_channels,
                groups=config.norm_num_groups,
                eps=config.norm_eps,
                time_width=time_width,
                dropout=config.dropout,
                divisor=divisor,
            )
            for channels in spec.in_channels
        )
        self.attentions = nn.ModuleList(
            Transformer2DModel(
                spec.out_channels,
                heads=spec.attention.heads,
                depth=spec.attention.depth,
                context_width=spec.attention.context_width,
                groups=config.norm_num_groups,
                use_linear_projection=config.use_linear_projection,
                only_cross_attention=spec.attention.only_cross_attention,
            )
            for _ in range(transformers if spec.attention else 0)
        )


class DownBlock(_Block):
    """Way down; returns the last feature map and every one that the way up will want."""

    def __init__(self, spec: BlockSpec, config: Config, time_width: int):
        super().__init__(spec, config, time_width, transformers=len(spec.in_channels))
        sampler = [Downsample2D(spec.out_channels, config.downsample_padding)] if spec.resample else []
        self.downsamplers = nn.ModuleList(sampler)

    def forward(self, x: Tensor, time: Time, context: Context, images: Images) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[index](x, context, images)
            skips.append(x)
        for sampler in self.downsamplers:
            x = sampler(x)
            skips.append(x)
        return x, skips


class MidBlock(_Block):
    """Residual block, then any number of (transformer, residual block); only here the sum is divided by a factor."""

    def __init__(self, spec: BlockSpec, config: Config, time_width: int):
        transformers = len(spec.in_channels) - 1
        super().__init__(spec, config, time_width, transformers, divisor=config.mid_block_scale_factor)

    def forward(self, x: Tensor, time: Time, context: Context, images: Images) -> Tensor:
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context, images), time)
        return x


class UpBlock(_Block):
    """Way up; each residual block takes the last skip off the stack. `freeu` re-weighs skip and backbone if set."""

    def __init__(self, spec: BlockSpec, config: Config, time_width: int):
        super().__init__(spec, config, time_width, transformers=len(spec.in_channels))
        self.upsamplers = nn.ModuleList([Upsample2D(spec.out_channels)] if spec.resample else [])
        self.freeu: FreeU | None = None

    def forward(self, x: Tensor, time: Time, context: Context, images: Images, skips: list[Tensor]) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            skip = skips.pop()
            if self.freeu is not None:
                x, skip = self.freeu(x, skip)
            x = resnet(torch.cat([x, skip], dim=1), time)
            if self.attentions:
                x = self.attentions[index](x, context, images)
        for sampler in self.upsamplers:
            # the size of the next skip, which is not twice ours where a side was odd on the way down
            x = sampler(x, skips[-1].shape[-2:])
        return x
