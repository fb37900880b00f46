"""IP-Adapters with random weights, in the layout of the original files."""

import torch
from torch import Tensor

TOKEN_WIDTH = 32  # the tiny UNets' cross_attention_dim


def _rand(*shape: int) -> Tensor:
    return torch.randn(*shape) / shape[-1] ** 0.5


def _norm(width: int, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + _rand(width) / 5, f"{name}.bias": _rand(width)}


def _linear(inputs: int, outputs: int, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": _rand(outputs, inputs), f"{name}.bias": _rand(outputs)}


def plain(embed_width: int) -> dict[str, Tensor]:
    return {**_linear(embed_width, 4 * TOKEN_WIDTH, "proj"), **_norm(TOKEN_WIDTH, "norm")}


def full(state_width: int) -> dict[str, Tensor]:
    return {
        **_linear(state_width, state_width, "proj.0"),
        **_linear(state_width, TOKEN_WIDTH, "proj.2"),
        **_norm(TOKEN_WIDTH, "proj.3"),
    }


def plus(state_width: int, width: int = 48, tokens: int = 5, heads: int = 2, depth: int = 4) -> dict[str, Tensor]:
    tensors = {
        "latents": _rand(1, tokens, width),
        **_linear(state_width, width, "proj_in"),
        **_linear(width, TOKEN_WIDTH, "proj_out"),
        **_norm(TOKEN_WIDTH, "norm_out"),
    }
    for layer in range(depth):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        tensors |= {
            **_norm(width, f"{attention}.norm1"),
            **_norm(width, f"{attention}.norm2"),
            f"{attention}.to_q.weight": _rand(64 * heads, width),
            f"{attention}.to_kv.weight": _rand(2 * 64 * heads, width),
            f"{attention}.to_out.weight": _rand(width, 64 * heads),
            **_norm(width, f"{feed_forward}.0"),
            f"{feed_forward}.1.weight": _rand(4 * width, width),
            f"{feed_forward}.3.weight": _rand(width, 4 * width),
        }
    return tensors


def layers(widths: list[int]) -> dict[str, Tensor]:
    """Keys and values for cross-attention layers of these widths, in the order down, up, middle."""
    return {
        f"{2 * number + 1}.to_{letter}_ip.weight": _rand(width, TOKEN_WIDTH)
        for number, width in enumerate(widths)
        for letter in "kv"
    }


def groups(image_proj: dict[str, Tensor], widths: list[int]) -> dict[str, dict[str, Tensor]]:
    return {"image_proj": image_proj, "ip_adapter": layers(widths)}


def flat(pair: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """As a safetensors file stores the groups."""
    return {f"{group}.{name}": tensor for group, tensors in pair.items() for name, tensor in tensors.items()}
