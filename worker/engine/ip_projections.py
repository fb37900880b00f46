"""What turns CLIP's view of a picture into tokens that cross-attention can read, for the kinds of IP-Adapter there are.

Ye et al. 2023, "IP-Adapter" (https://arxiv.org/abs/2308.06721); the resampler of the "plus" kind is that of Alayrac et
al. 2022, "Flamingo" (https://arxiv.org/abs/2204.14198), section 3.1.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from worker.engine.attention import Attention
from worker.engine.errors import CheckpointInvalid
from worker.engine.model import check_tensors

_PLAIN_TOKENS = 4
_HEAD_WIDTH = 64  # of every published resampler


class PlainProjection(nn.Module):
    """CLIP's image embedding [N, E] → four tokens [N, 4, D]."""

    uses_hidden_states = False

    def __init__(self, embed_width: int, token_width: int):
        super().__init__()
        self.proj = nn.Linear(embed_width, _PLAIN_TOKENS * token_width)
        self.norm = nn.LayerNorm(token_width)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm(self.proj(embeds).unflatten(-1, (_PLAIN_TOKENS, -1)))


class FullProjection(nn.Module):
    """CLIP's hidden states [N, S, E] → as many tokens [N, S, D], each by itself."""

    uses_hidden_states = True

    def __init__(self, embed_width: int, token_width: int):
        super().__init__()
        inner = nn.Linear(embed_width, embed_width)
        self.proj = nn.Sequential(inner, nn.GELU(), nn.Linear(embed_width, token_width), nn.LayerNorm(token_width))

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(states)


class Resampler(nn.Module):
    """CLIP's hidden states [N, S, E] → a fixed number of tokens [N, T, D], learned queries that attend to them."""

    uses_hidden_states = True

    def __init__(self, embed_width: int, token_width: int, width: int, tokens: int, heads: int, depth: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = nn.Linear(embed_width, width)
        self.proj_out = nn.Linear(width, token_width)
        self.norm_out = nn.LayerNorm(token_width)
        self.layers = nn.ModuleList(ResamplerBlock(width, heads) for _ in range(depth))

    def forward(self, states: Tensor) -> Tensor:
        states = self.proj_in(states)
        latents = self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            latents = layer(latents, states)
        return self.norm_out(self.proj_out(latents))


class ResamplerBlock(nn.Module):
    """The latents attend to the states and to themselves, then a feed-forward layer; both are added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln0 = nn.LayerNorm(width)
        self.ln1 = nn.LayerNorm(width)
        shape = {"heads": heads, "head_width": _HEAD_WIDTH}
        self.attn = Attention(width, **shape, context_width=width, out_bias=False)
        widen, narrow = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.ff = nn.Sequential(nn.LayerNorm(width), widen, nn.GELU(), narrow)

    def forward(self, latents: Tensor, states: Tensor) -> Tensor:
        own = self.ln1(latents)
        latents = self.attn(own, torch.cat([self.ln0(states), own], dim=-2)) + latents
        return self.ff(latents) + latents


def image_projection(tensors: Mapping[str, Tensor], where: str) -> PlainProjection | FullProjection | Resampler:
    """The projection that a file's `image_proj` tensors are of, with copies of them.

    Raises `CheckpointInvalid` for a kind we do not run, and for tensors that are missing, extra or misshapen.
    """
    if "perceiver_resampler.proj_in.weight" in tensors or {"proj.0.weight", "norm.weight"} <= tensors.keys():
        raise CheckpointInvalid(f"{where} is a FaceID adapter, which needs a face recognizer; use a plain or plus one")
    with torch.device("meta"):
        if "proj.weight" in tensors:
            wide, embed_width = tensors["proj.weight"].shape
            projection: nn.Module = PlainProjection(embed_width, wide // _PLAIN_TOKENS)
        elif "proj.3.weight" in tensors:
            projection = FullProjection(tensors["proj.0.weight"].shape[-1], tensors["proj.3.weight"].shape[0])
        elif "latents" in tensors:
            tensors = _resampler_names(tensors)
            projection = _resampler(tensors, where)
        else:
            raise CheckpointInvalid(f"{where}: its `image_proj` is of no kind of IP-Adapter that we know")
    check_tensors({name: t.shape for name, t in projection.state_dict().items()}, tensors, f"{where}: image_proj")
    projection.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return projection.eval()


def _resampler(tensors: Mapping[str, Tensor], where: str) -> Resampler:
    try:
        return Resampler(
            embed_width=tensors["proj_in.weight"].shape[1],
            token_width=tensors["proj_out.weight"].shape[0],
            width=tensors["latents"].shape[2],
            tokens=tensors["latents"].shape[1],
            heads=tensors["layers.0.attn.to_q.weight"].shape[0] // _HEAD_WIDTH,
            depth=len({name.split(".")[1] for name in tensors if name.startswith("layers.")}),
        )
    except (KeyError, IndexError) as error:
        raise CheckpointInvalid(f"{where}: its resampler lacks {error}") from error


_RESAMPLER_RULES = [
    # the original code's lists of lists
    (re.compile(r"^(layers\.\d+)\.0\.norm1\."), r"\1.ln0."),
    (re.compile(r"^(layers\.\d+)\.0\.norm2\."), r"\1.ln1."),
    (re.compile(r"^(layers\.\d+)\.0\.to_out\."), r"\1.attn.to_out.0."),
    (re.compile(r"^(layers\.\d+)\.0\.to_"), r"\1.attn.to_"),
    (re.compile(r"^(layers\.\d+)\.1\."), r"\1.ff."),
    # diffusers' names for the feed-forward layers
    (re.compile(r"^(layers\.\d+)\.ff\.1\.net\.0\.proj\."), r"\1.ff.1."),
    (re.compile(r"^(layers\.\d+)\.ff\.1\.net\.2\."), r"\1.ff.3."),
]


def _resampler_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _RESAMPLER_RULES:
            name = pattern.sub(replacement, name)
        if ".to_kv." in name:
            key, value = tensor.chunk(2)
            renamed |= {name.replace("to_kv", "to_k"): key, name.replace("to_kv", "to_v"): value}
        else:
            renamed[name] = tensor
    return renamed
