"""UNet2DConditionModel: the denoiser of Stable Diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

The architecture is the table in `unet_spec`; state-dict names are diffusers'.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention_settings import AttentionSettings
from worker.engine.errors import InvalidParameter
from worker.engine.freeu import FreeU
from worker.engine.ip_adapter import ImagePrompts
from worker.engine.layers import TimestepEmbedding, sinusoidal_embedding
from worker.engine.model import Model
from worker.engine.unet_blocks import DownBlock, MidBlock, UpBlock
from worker.engine.unet_spec import UNET_FIELDS, unet_spec


class UNet2DConditionModel(ImagePrompts, AttentionSettings, Model):
    """ε, v or x₀ (as it was trained) of a noisy latent, given time and text. Every row of the batch is independent."""

    FIELDS = UNET_FIELDS

    def __init__(self, **config: Any):
        super().__init__(**config)
        self.spec = spec = unet_spec(self.config)
        first, c = self.config.block_out_channels[0], self.config
        self.conv_in = nn.Conv2d(c.in_channels, first, c.conv_in_kernel, padding=(c.conv_in_kernel - 1) // 2)
        self.time_embedding = TimestepEmbedding(first, spec.time_width, c.time_cond_proj_dim)
        self.down_blocks = nn.ModuleList(DownBlock(row, c, spec.time_width) for row in spec.down)
        self.up_blocks = nn.ModuleList(UpBlock(row, c, spec.time_width) for row in spec.up)
        self.mid_block = MidBlock(spec.mid, c, spec.time_width) if spec.mid else None
        self.ip_adapters = nn.ModuleList()
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, first, c.norm_eps)
        self.conv_out = nn.Conv2d(first, c.out_channels, c.conv_out_kernel, padding=(c.conv_out_kernel - 1) // 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        ip_hidden_states: Sequence[Tensor] | None = None,
        ip_adapter_masks: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """`sample` [B, in_channels, h, w] in the model's dtype, any h and w → [B, out_channels, h, w].

        `timestep`: a number, or [B] with a time for each row, in training steps (0…999), fractions allowed.
        `encoder_hidden_states`: [B, L, cross_attention_dim]. `timestep_cond`: [B, time_cond_proj_dim].
        `ip_hidden_states`: for each IP-Adapter [B, pictures, tokens, cross_attention_dim], or [B, tokens, …] of all its
        pictures together; None leaves adapters silent. `ip_adapter_masks`: for each [1, pictures, H, W], or None.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        time = self.embed_time(timestep, timestep_cond, sample)
        text, images = encoder_hidden_states, self.image_prompts(ip_hidden_states, ip_adapter_masks)

        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, produced = block(x, time, text, images)
            skips += produced
        if self.mid_block is not None:
            x = self.mid_block(x, time, text, images)
        for block in self.up_blocks:
            x = block(x, time, text, images, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def embed_time(self, timestep: Tensor | float, condition: Tensor | None, sample: Tensor) -> Tensor:
        """[B, time_width], activated: what every residual block adds a projection of."""
        if condition is not None and self.config.time_cond_proj_dim is None:
            raise InvalidParameter("timestep_cond", "needs a UNet whose configuration has a `time_cond_proj_dim`")
        times = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        waves = sinusoidal_embedding(
            times,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return F.silu(self.time_embedding(waves.to(sample.dtype), condition))

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU in the two lowest levels of the way up; as in diffusers, a zero among the four leaves it off."""
        self.disable_freeu()
        if s1 and s2 and b1 and b2:
            for block, skip, backbone in zip(self.up_blocks, (s1, s2), (b1, b2), strict=False):
                block.freeu = FreeU(backbone=backbone, skip=skip)

    def disable_freeu(self) -> None:
        for block in self.up_blocks:
            block.freeu = None
