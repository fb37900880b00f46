"""What an original checkpoint is, read off the shapes of its tensors: a configuration for each network.

Two facts are in no shape and are those of the published models. The UNet of Stable Diffusion 1 has 8 heads, that of 2
(linear projections) heads of 64 channels; OpenAI's CLIP computes quick_gelu, OpenCLIP gelu.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from worker.engine.errors import CheckpointInvalid

_HEAD_WIDTH = 64


def unet_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`tensors`: those below `model.diffusion_model.`. Raises `CheckpointInvalid` if they form no UNet we know."""
    try:
        levels = _unet_levels(tensors)
        crossed = [name for name in tensors if name.endswith("attn2.to_k.weight")]
        linear = next(t for name, t in tensors.items() if name.endswith("1.proj_in.weight")).ndim == 2
        widths, layers, depths = zip(*levels, strict=True)
        return {
            "sample_size": 64,
            "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
            "out_channels": tensors["out.2.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "transformer_layers_per_block": max(depths),
            "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
            "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
            "cross_attention_dim": tensors[crossed[0]].shape[1],
            "use_linear_projection": linear,
            "attention_head_dim": [width // _HEAD_WIDTH for width in widths] if linear else 8,
        }
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        raise CheckpointInvalid(
            f"the UNet is of no kind we know ({error}); pass `config=` with its config.json"
        ) from error


def _unet_levels(tensors: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    """(channels, residual blocks, transformer blocks behind each) of every level on the way down."""
    levels: list[tuple[int, int, int]] = []
    width = layers = depth = 0
    for number in range(1, 1 + max(_numbers(tensors, r"input_blocks\.(\d+)\."))):
        if f"input_blocks.{number}.0.op.weight" in tensors:
            levels.append((width, layers, depth))
            layers = depth = 0
            continue
        width = tensors[f"input_blocks.{number}.0.out_layers.3.weight"].shape[0]
        layers += 1
        depth = len(_numbers(tensors, rf"input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\."))
    return [*levels, (width, layers, depth)]


def vae_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """`tensors`: those below `first_stage_model.`."""
    try:
        levels = 1 + max(_numbers(tensors, r"encoder\.down\.(\d+)\."))
        return {
            "sample_size": 512,
            "in_channels": tensors["encoder.conv_in.weight"].shape[1],
            "out_channels": tensors["decoder.conv_out.weight"].shape[0],
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
            "block_out_channels": [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
            "layers_per_block": len(_numbers(tensors, r"encoder\.down\.0\.block\.(\d+)\.")),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "scaling_factor": 0.18215,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointInvalid(
            f"the autoencoder is of no kind we know ({error}); pass `config=` with its config.json"
        ) from error


def text_config(tensors: Mapping[str, Tensor], *, open_clip: bool) -> dict[str, Any]:
    """`tensors`: those of the text encoder under today's names. One layer less than OpenCLIP's file holds is used."""
    try:
        layers = len(_numbers(tensors, r"encoder\.layers\.(\d+)\."))
        vocabulary, width = tensors["embeddings.token_embedding.weight"].shape
        return {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": layers,
            "num_attention_heads": width // _HEAD_WIDTH,
            "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
            "hidden_act": "gelu" if open_clip else "quick_gelu",
            "projection_dim": width,
        }
    except (KeyError, ValueError) as error:
        raise CheckpointInvalid(
            f"the text encoder is of no kind we know ({error}); pass `config=` with its config.json"
        ) from error


def _numbers(names: Iterable[str], pattern: str) -> set[int]:
    matcher = re.compile(pattern)
    return {int(match[1]) for match in map(matcher.match, names) if match}
