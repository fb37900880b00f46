"""The UNet's architecture as data: a configuration is turned into a table of blocks, and nothing else decides.

UNetSpec of SD 1.5          in → out  resnets  attention     after
down 0  CrossAttn         320 →  320  2        8 heads × 40  half the size
down 1  CrossAttn         320 →  640  2        8 heads × 80  half the size
down 2  CrossAttn         640 → 1280  2        8 heads × 160 half the size
down 3  plain            1280 → 1280  2        none
mid     CrossAttn        1280 → 1280  2        8 heads × 160
up   0  plain            1280 → 1280  3        none          twice the size
up   1  CrossAttn        1280 → 1280  3        8 heads × 160 twice the size
up   2  CrossAttn        1280 →  640  3        8 heads × 80  twice the size
up   3  CrossAttn         640 →  320  3        8 heads × 40
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.config import (
    Config,
    Field,
    flag,
    flag_per_level,
    names,
    number,
    only,
    whole,
    whole_per_level,
    wholes,
)
from worker.engine.errors import CheckpointInvalid

_CROSS_DOWN, _PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
_CROSS_MID, _PLAIN_MID = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"

UNET_FIELDS: Mapping[str, Field] = {
    "sample_size": Field(None),
    "in_channels": whole(4),
    "out_channels": whole(4),
    "center_input_sample": flag(False),
    "flip_sin_to_cos": flag(True),
    "freq_shift": number(0),
    "down_block_types": names((_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _PLAIN_DOWN), _CROSS_DOWN, _PLAIN_DOWN),
    "mid_block_type": only(_CROSS_MID, _PLAIN_MID, None),
    "up_block_types": names((_PLAIN_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP), _CROSS_UP, _PLAIN_UP),
    "only_cross_attention": flag_per_level(False),
    "block_out_channels": wholes((320, 640, 1280, 1280)),
    "layers_per_block": whole_per_level(2),
    "downsample_padding": Field(1, lambda value: value in (0, 1), "it must be 0 or 1"),
    "mid_block_scale_factor": number(1),
    "dropout": number(0.0),
    "act_fn": only("silu", "swish"),
    "norm_num_groups": whole(32),
    "norm_eps": number(1e-5),
    "cross_attention_dim": whole_per_level(1280),
    "transformer_layers_per_block": whole_per_level(1),
    "reverse_transformer_layers_per_block": only(None),
    "encoder_hid_dim": only(None),
    "encoder_hid_dim_type": only(None),
    "attention_head_dim": whole_per_level(8),
    "num_attention_heads": only(None),
    "dual_cross_attention": only(False),
    "use_linear_projection": flag(False),
    "class_embed_type": only(None),
    "addition_embed_type": only(None),
    "addition_time_embed_dim": Field(None),  # read only together with an addition_embed_type, which is refused
    "num_class_embeds": only(None),
    "upcast_attention": Field(False),  # scaled_dot_product_attention sums in float32 whatever the weights' dtype
    "resnet_time_scale_shift": only("default"),
    "resnet_skip_time_act": only(False),
    "resnet_out_scale_factor": only(1.0),
    "time_embedding_type": only("positional"),
    "time_embedding_dim": whole(None),
    "time_embedding_act_fn": only(None),
    "timestep_post_act": only(None),
    "time_cond_proj_dim": whole(None),
    "conv_in_kernel": whole(3),
    "conv_out_kernel": whole(3),
    "projection_class_embeddings_input_dim": Field(None),  # read only together with a class_embed_type
    "attention_type": only("default"),
    "class_embeddings_concat": only(False),
    "mid_block_only_cross_attention": Field(None),  # read only by a kind of middle block that is refused
    "cross_attention_norm": only(None),
    "addition_embed_type_num_heads": Field(64),
}


@dataclass(frozen=True)
class AttentionSpec:
    """The transformer behind each residual block. `heads` × (channels / heads) is the width, `depth` its blocks."""

    heads: int
    depth: int
    context_width: int
    only_cross_attention: bool


@dataclass(frozen=True)
class BlockSpec:
    """`in_channels`: what enters each residual block, skips included. `resample`: ends in a change of size."""

    in_channels: tuple[int, ...]
    out_channels: int
    attention: AttentionSpec | None
    resample: bool


@dataclass(frozen=True)
class UNetSpec:
    """All blocks of a UNet; `skips` are the channels of the feature maps handed from the way down to the way up."""

    time_width: int
    down: tuple[BlockSpec, ...]
    mid: BlockSpec | None
    up: tuple[BlockSpec, ...]
    skips: tuple[int, ...]


def unet_spec(config: Config) -> UNetSpec:
    """The block table of a configuration. Raises `CheckpointInvalid` naming the key that contradicts another."""
    widths = config.block_out_channels
    levels = len(widths)
    for key in ("down_block_types", "up_block_types"):
        if len(config[key]) != levels:
            raise CheckpointInvalid(f"UNet configuration: `{key}` needs one entry for each of the {levels} levels")
    for width in widths:
        if width % config.norm_num_groups:
            raise CheckpointInvalid(
                f"UNet configuration: `norm_num_groups` = {config.norm_num_groups} does not divide {width} channels"
            )
    layers = _per_level(config, "layers_per_block")
    attention = tuple(_attention(config, level, widths[level]) for level in range(levels))

    down, skips, channels = [], [widths[0]], widths[0]
    for level, width in enumerate(widths):
        last = level == levels - 1
        kind = attention[level] if config.down_block_types[level] == _CROSS_DOWN else None
        down.append(BlockSpec((channels, *[width] * (layers[level] - 1)), width, kind, resample=not last))
        skips += [width] * (layers[level] + (not last))
        channels = width

    up, stack = [], list(skips)
    for position, level in enumerate(reversed(range(levels))):
        width, entering = widths[level], []
        for _ in range(layers[level] + 1):
            entering.append(channels + stack.pop())
            channels = width
        kind = attention[level] if config.up_block_types[position] == _CROSS_UP else None
        up.append(BlockSpec(tuple(entering), width, kind, resample=level > 0))

    return UNetSpec(
        time_width=config.time_embedding_dim or 4 * widths[0],
        down=tuple(down),
        mid=_middle(config, attention[-1]),
        up=tuple(up),
        skips=tuple(skips),
    )


def _middle(config: Config, attention: AttentionSpec) -> BlockSpec | None:
    width = config.block_out_channels[-1]
    if config.mid_block_type is None:
        return None
    if config.mid_block_type == _PLAIN_MID:
        return BlockSpec((width,), width, None, resample=False)
    own = AttentionSpec(attention.heads, attention.depth, attention.context_width, only_cross_attention=False)
    return BlockSpec((width, width), width, own, resample=False)


def _attention(config: Config, level: int, width: int) -> AttentionSpec:
    # The key says dimension and means number: it was misnamed once and every checkpoint since carries the name.
    heads = _per_level(config, "attention_head_dim")[level]
    if heads > width:
        raise CheckpointInvalid(
            f"UNet configuration: `attention_head_dim` = {heads} (the number of heads) is more than {width} channels"
        )
    return AttentionSpec(
        heads=heads,
        depth=_per_level(config, "transformer_layers_per_block")[level],
        context_width=_per_level(config, "cross_attention_dim")[level],
        only_cross_attention=_per_level(config, "only_cross_attention")[level],
    )


def _per_level(config: Config, key: str) -> tuple[Any, ...]:
    value, levels = config[key], len(config.block_out_channels)
    if not isinstance(value, tuple):
        return (value,) * levels
    if len(value) != levels:
        raise CheckpointInvalid(f"UNet configuration: `{key}` needs one entry for each of the {levels} levels")
    return value
