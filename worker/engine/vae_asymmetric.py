"""AsymmetricAutoencoderKL: a decoder that is shown the untouched part of the picture and keeps it.

Zhu et al. 2023, "Designing a Better Asymmetric VQGAN for StableDiffusion" (https://arxiv.org/abs/2306.04632).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention_settings import AttentionSettings
from worker.engine.config import Field, names, number, only, whole, wholes
from worker.engine.errors import CheckpointInvalid, FeatureUnavailable, InvalidParameter
from worker.engine.model import Model
from worker.engine.vae import DiagonalGaussian, check_levels
from worker.engine.vae_blocks import Decoder, Encoder, current_names

ASYMMETRIC_FIELDS: Mapping[str, Field] = {
    "in_channels": whole(3),
    "out_channels": whole(3),
    "down_block_types": names(("DownEncoderBlock2D",), "DownEncoderBlock2D"),
    "down_block_out_channels": wholes((64,)),
    "layers_per_down_block": whole(1),
    "up_block_types": names(("UpDecoderBlock2D",), "UpDecoderBlock2D"),
    "up_block_out_channels": wholes((64,)),
    "layers_per_up_block": whole(1),
    "act_fn": only("silu", "swish"),
    "latent_channels": whole(4),
    "norm_num_groups": whole(32),
    "sample_size": Field(32),
    "scaling_factor": number(0.18215),
    # what diffusers derives and writes beside the rest, for those who read an AutoencoderKL's keys
    "block_out_channels": Field(None),
    "force_upcast": only(False),
}

_ONE_PIECE = (
    "AsymmetricAutoencoderKL works on whole pictures and whole batches: use an AutoencoderKL for slices and tiles"
)


class AsymmetricAutoencoderKL(AttentionSettings, Model):
    FIELDS = ASYMMETRIC_FIELDS

    def __init__(self, **config: Any):
        super().__init__(**{**config, "block_out_channels": config.get("up_block_out_channels", (64,))})
        c, latent = self.config, self.config.latent_channels
        check_levels("AsymmetricAutoencoderKL", c, "down_block_out_channels", "down_block_types")
        check_levels("AsymmetricAutoencoderKL", c, "up_block_out_channels", "up_block_types")
        down, up = (
            (c.down_block_out_channels, c.layers_per_down_block),
            (c.up_block_out_channels, c.layers_per_up_block),
        )
        self.encoder = Encoder(c.in_channels, latent, *down, c.norm_num_groups)
        self.decoder = MaskConditionDecoder(latent, c.out_channels, *up, c.norm_num_groups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    @classmethod
    def current_names(cls, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return current_names(tensors)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Pictures [B, 3, H, W] in −1…1 → the distribution of their latents, not yet scaled by `scaling_factor`."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor, image: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Latents [B, latent_channels, h, w], divided by `scaling_factor` → pictures [B, 3, H, W].

        With `image` [B, 3, H, W] in −1…1 and `mask` [B, 1, H, W], 1 where the picture was repainted and 0 where it
        is to stay, the decoder blends in what it sees of the untouched part; without them it decodes as any other.
        """
        if (image is None) != (mask is None):
            raise InvalidParameter("mask", "and `image` belong together: pass both or neither")
        return self.decoder(self.post_quant_conv(z), image, mask)

    def enable_slicing(self) -> None:
        raise FeatureUnavailable(_ONE_PIECE)

    def enable_tiling(self) -> None:
        raise FeatureUnavailable(_ONE_PIECE)

    def disable_slicing(self) -> None:
        """Nothing to do: it is never on."""

    def disable_tiling(self) -> None:
        """Nothing to do: it is never on."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x).mode(), None if mask is None else x, mask)


class MaskConditionEncoder(nn.Module):
    """Features of the masked picture at five scales: full size twice, then 1/2, 1/4 and 1/8."""

    def __init__(self, in_channels: int, first: int, last: int):
        super().__init__()
        widths = [*(min(first * 2**level, last) for level in range(4)), last]
        entering = [in_channels, *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                nn.Conv2d(before, width, 3, padding=1)
                if level < 2
                else nn.Conv2d(before, width, 4, stride=2, padding=1)
                for level, (before, width) in enumerate(zip(entering, widths, strict=True))
            )
        )

    def forward(self, x: Tensor) -> dict[torch.Size, Tensor]:
        """The features by their shape [C, h, w]; where two agree, the later."""
        features = {}
        for layer in self.layers:
            x = layer(x)
            features[x.shape[1:]] = x
            x = torch.relu(x)
        return features


class MaskConditionDecoder(Decoder):
    """The decoder; outside the mask its feature maps are replaced by those of the masked picture, at every scale."""

    def __init__(self, latent_channels: int, out_channels: int, widths: tuple[int, ...], layers: int, groups: int):
        super().__init__(latent_channels, out_channels, widths, layers, groups)
        self.condition_encoder = MaskConditionEncoder(out_channels, widths[0], widths[-1])

    def forward(self, z: Tensor, image: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if image is None or mask is None:
            return super().forward(z)
        known = self.condition_encoder((1 - mask) * image)
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(_blend(x, known, mask))
        return self.conv_out(F.silu(self.conv_norm_out(_blend(x, known, mask))))


def _blend(x: Tensor, known: Mapping[torch.Size, Tensor], mask: Tensor) -> Tensor:
    """x where the mask is 1, the known features of the same shape where it is 0."""
    if x.shape[1:] not in known:
        raise CheckpointInvalid(
            "AsymmetricAutoencoderKL configuration: `up_block_out_channels` does not fit the mask's encoder, "
            f"which has no features of shape {tuple(x.shape[1:])}; it needs four levels, and pictures of whole latents"
        )
    mask = F.interpolate(mask, size=x.shape[-2:], mode="nearest")
    return x * mask + known[x.shape[1:]] * (1 - mask)
