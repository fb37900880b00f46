"""AutoencoderKL: pictures to latents and back.

Kingma and Welling 2013 (https://arxiv.org/abs/1312.6114) for the model, Rombach et al. 2022
(https://arxiv.org/abs/2112.10752) for this one. State-dict names are diffusers'.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.attention_settings import AttentionSettings
from worker.engine.config import Config, Field, flag, names, number, only, whole, wholes
from worker.engine.errors import CheckpointInvalid
from worker.engine.model import Model
from worker.engine.noise import Generators, randn_tensor
from worker.engine.vae_blocks import Decoder, Encoder, current_names
from worker.engine.vae_tiling import Tiling


def _is_side(value: Any) -> bool:
    return all(isinstance(side, int) and side > 0 for side in (value if isinstance(value, tuple) else (value,)))


VAE_FIELDS: Mapping[str, Field] = {
    "in_channels": whole(3),
    "out_channels": whole(3),
    "down_block_types": names(("DownEncoderBlock2D",), "DownEncoderBlock2D"),
    "up_block_types": names(("UpDecoderBlock2D",), "UpDecoderBlock2D"),
    "block_out_channels": wholes((64,)),
    "layers_per_block": whole(1),
    "act_fn": only("silu", "swish"),
    "latent_channels": whole(4),
    "norm_num_groups": whole(32),
    "sample_size": Field(32, _is_side, "it must be a positive integer, or two of them"),
    "scaling_factor": number(0.18215),
    "shift_factor": only(None),
    "latents_mean": only(None),
    "latents_std": only(None),
    "force_upcast": flag(True),
    "use_quant_conv": flag(True),
    "use_post_quant_conv": flag(True),
    "mid_block_add_attention": flag(True),
}


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution over latents with independent components.

    `moments` [B, 2 · latent_channels, h, w]: mean, then logarithm of the variance, which is held within −30…20.
    """

    moments: Tensor

    @cached_property
    def mean(self) -> Tensor:
        return self.moments.chunk(2, dim=1)[0]

    @cached_property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.moments.chunk(2, dim=1)[1].clamp(-30.0, 20.0))

    def sample(self, generator: Generators = None) -> Tensor:
        """mean + std · ε, with ε drawn on the generator's device in the moments' dtype."""
        mean = self.mean
        return mean + self.std * randn_tensor(mean.shape, generator, mean.device, mean.dtype)

    def mode(self) -> Tensor:
        return self.mean


class AutoencoderKL(AttentionSettings, Model):
    """Also in slices (`enable_slicing`: one picture after the other) and in tiles (`enable_tiling`), to save memory."""

    FIELDS = VAE_FIELDS

    def __init__(self, **config: Any):
        super().__init__(**config)
        c = self.config
        check_levels("AutoencoderKL", c, "block_out_channels", "down_block_types", "up_block_types")
        shape = (c.block_out_channels, c.layers_per_block, c.norm_num_groups, c.mid_block_add_attention)
        self.encoder = Encoder(c.in_channels, c.latent_channels, *shape)
        self.decoder = Decoder(c.latent_channels, c.out_channels, *shape)
        latent = c.latent_channels
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if c.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if c.use_post_quant_conv else nn.Identity()
        self.use_slicing = self.use_tiling = False
        side = c.sample_size[0] if isinstance(c.sample_size, tuple) else c.sample_size
        small = int(side / 2 ** (len(c.block_out_channels) - 1))
        self.encode_tiling, self.decode_tiling = Tiling(side, small), Tiling(small, side)

    @classmethod
    def current_names(cls, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return current_names(tensors)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Pictures [B, 3, H, W] in −1…1 → the distribution of their latents, not yet scaled by `scaling_factor`."""
        return DiagonalGaussian(self._run(lambda part: self.quant_conv(self.encoder(part)), x, self.encode_tiling))

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, latent_channels, h, w], divided by `scaling_factor` → pictures, nominally in −1…1."""
        return self._run(lambda part: self.decoder(self.post_quant_conv(part)), z, self.decode_tiling)

    def _run(self, network: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling) -> Tensor:
        parts = x.split(1) if self.use_slicing else (x,)
        if self.use_tiling and tiling.wanted(x):
            return torch.cat([tiling.run(part, network) for part in parts])
        return torch.cat([network(part) for part in parts])

    def enable_slicing(self) -> None:
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self) -> None:
        """Pictures larger than the configuration's `sample_size` go in tiles of that size; seams are blended."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).mode())


def check_levels(model: str, config: Config, widths: str, *types: str) -> None:
    """Raise `CheckpointInvalid` unless each key of `types` has an entry for each width, and the groups divide them."""
    for key in types:
        if len(config[key]) != len(config[widths]):
            raise CheckpointInvalid(f"{model} configuration: `{key}` needs as many entries as `{widths}`")
    for width in config[widths]:
        if width % config.norm_num_groups:
            raise CheckpointInvalid(
                f"{model} configuration: `norm_num_groups` = {config.norm_num_groups} does not divide {width} channels"
            )
