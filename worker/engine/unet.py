"""UNet2DConditionModel: the denoiser of Stable Diffusion (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

The architecture is the table in `unet_spec`; state-dict names are diffusers'.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention import Attention
from worker.engine.attention_settings import AttentionSettings
from worker.engine.conditions import ImageKeysValues, KeysValues, TimeStates
from worker.engine.errors import InvalidParameter
from worker.engine.freeu import FreeU
from worker.engine.ip_adapter import ImagePrompts
from worker.engine.ip_attention import ImageTokens
from worker.engine.layers import ResnetBlock2D, TimestepEmbedding, sinusoidal_embedding
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
        for layers in (self._residual_blocks(), self._cross_attention_layers()):
            for place, layer in enumerate(layers):
                layer.place = place

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | TimeStates,
        encoder_hidden_states: Tensor | KeysValues,
        *,
        timestep_cond: Tensor | None = None,
        ip_hidden_states: Sequence[ImageTokens] | None = None,
        ip_adapter_masks: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """`sample` [B, in_channels, h, w] in the model's dtype, any h and w → [B, out_channels, h, w].

        `timestep`: a number, or [B] with a time for each row, in training steps (0…999), fractions allowed; or a row
        of `time_states` for each row. `encoder_hidden_states`: [B, L, cross_attention_dim], or a row of
        `text_keys_values` for each row. `timestep_cond`: [B, time_cond_proj_dim].
        `ip_hidden_states`: for each IP-Adapter [B, pictures, tokens, cross_attention_dim], or [B, tokens, …] of all its
        pictures together, or of `image_keys_values` a row for each row; None leaves adapters silent.
        `ip_adapter_masks`: for each [1, pictures, H, W], or None.

        Raises `InvalidParameter` for a guidance embedding without its layer, or image prompts or rows that do not fit.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        pictures = [("ip_hidden_states", each) for each in ip_hidden_states or ()]
        for field, given in (("timestep", timestep), ("encoder_hidden_states", encoder_hidden_states), *pictures):
            if isinstance(given, TimeStates | KeysValues | ImageKeysValues) and len(given) != len(sample):
                raise InvalidParameter(field, f"has {len(given)} rows for a batch of {len(sample)}: give one each")
        time = self._time(timestep, timestep_cond, sample)
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

    def time_states(self, timesteps: Tensor, timestep_cond: Tensor | None = None) -> TimeStates:
        """What `forward` takes in the place of these times [T]: a row each, for this UNet's present weights.

        `timestep_cond`: [T, time_cond_proj_dim], or [1, …] for all. Raises `InvalidParameter` as `forward` does.
        """
        time = self.embed_time(timesteps.to(self.device), timestep_cond, self.dtype)
        parts = [block.time_emb_proj(time) for block in self._residual_blocks()]
        return TimeStates(torch.cat(parts, dim=1), tuple(part.shape[1] for part in parts))

    def text_keys_values(self, encoder_hidden_states: Tensor) -> KeysValues:
        """What `forward` takes in the place of these texts [B, L, D]: a row each, for this UNet's present weights."""
        pairs = [layer.keys_values(encoder_hidden_states) for layer in self._cross_attention_layers()]
        return KeysValues.laid_out(pairs, encoder_hidden_states)

    def image_keys_values(self, ip_hidden_states: Sequence[Tensor]) -> list[ImageKeysValues]:
        """What `forward` takes in the place of these tokens, for each IP-Adapter that is loaded: a row for each row.

        Scales and masks may change after. Raises `InvalidParameter` for more or fewer than there are adapters.
        """
        made = []
        for number, prompt in enumerate(self.image_prompts(ip_hidden_states, None)):
            tokens = prompt.tokens.flatten(1, -2)
            pairs = [
                layer.image_layers[number].keys_values(tokens) if layer.image_layers else (tokens[..., :0],) * 2
                for layer in self._cross_attention_layers()
            ]
            made.append(ImageKeysValues.laid_out(pairs, tokens, pictures=prompt.pictures))
        return made

    def conditioning_layers(self) -> Iterator[nn.Module]:
        """Every module that `time_states` and `text_keys_values` call, and `forward` with what they made does not."""
        yield from self.time_embedding.modules()
        yield from (block.time_emb_proj for block in self._residual_blocks())
        for layer in self._cross_attention_layers():
            yield from (layer.to_k, layer.to_v)

    def embed_time(self, times: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`times` [T] → [T, time_width], activated: what every residual block adds a projection of."""
        if condition is not None and self.config.time_cond_proj_dim is None:
            raise InvalidParameter("timestep_cond", "needs a UNet whose configuration has a `time_cond_proj_dim`")
        waves = sinusoidal_embedding(
            times,
            self.config.block_out_channels[0],
            flip_sin_to_cos=self.config.flip_sin_to_cos,
            freq_shift=self.config.freq_shift,
        )
        return F.silu(self.time_embedding(waves.to(dtype), condition))

    def _time(
        self, timestep: Tensor | float | TimeStates, condition: Tensor | None, sample: Tensor
    ) -> Tensor | TimeStates:
        if not isinstance(timestep, TimeStates):
            times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
            return self.embed_time(times, condition, sample.dtype)
        if condition is not None:
            raise InvalidParameter("timestep_cond", "is part of the time states already: leave it out")
        return timestep

    def _residual_blocks(self) -> Iterable[ResnetBlock2D]:
        return (layer for layer in self.modules() if isinstance(layer, ResnetBlock2D))

    def _cross_attention_layers(self) -> Iterable[Attention]:
        return (layer for layer in self.modules() if isinstance(layer, Attention) and layer.is_cross_attention)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU in the two lowest levels of the way up; as in diffusers, a zero among the four leaves it off."""
        self.disable_freeu()
        if s1 and s2 and b1 and b2:
            for block, skip, backbone in zip(self.up_blocks, (s1, s2), (b1, b2), strict=False):
                block.freeu = FreeU(backbone=backbone, skip=skip)

    def disable_freeu(self) -> None:
        for block in self.up_blocks:
            block.freeu = None
