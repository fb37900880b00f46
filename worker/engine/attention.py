"""Multi-head attention and the transformer that Stable Diffusion puts between its convolutions.

Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); Rombach et al. 2022 (https://arxiv.org/abs/2112.10752),
section 3.3, for conditioning by cross-attention; Shazeer 2020 (https://arxiv.org/abs/2002.05202) for the gated GELU.
Query, key and value are parameters of their own, under diffusers' names, so that a LoRA finds each.
"""

from collections.abc import Callable, Sequence
from typing import Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.attention_products import AttentionProduct, scaled_dot_product
from worker.engine.conditions import KeysValues
from worker.engine.ip_attention import ImageKeyValue, ImagePrompt
from worker.engine.packed import PackedLinear

Context: TypeAlias = Tensor | KeysValues  # the text [B, L, D], or what the layers made of it


class Attention(nn.Module):
    """softmax(q kᵀ / √d) v over `heads` heads, then a linear layer: [B, N, query_width] → the same shape.

    Keys and values come from `context` [B, L, context_width], or from the input where there is none; or they are given
    in the context's place, and this layer's are found there at its `place` among a network's cross-attention layers.
    """

    def __init__(
        self,
        query_width: int,
        *,
        heads: int,
        head_width: int,
        context_width: int | None = None,
        bias: bool = False,
        out_bias: bool = True,
    ):
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.is_cross_attention = context_width is not None
        source = query_width if context_width is None else context_width
        self.to_q = nn.Linear(query_width, inner, bias=bias)
        self.to_k = nn.Linear(source, inner, bias=bias)
        self.to_v = nn.Linear(source, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_width, bias=out_bias)])
        self.product: AttentionProduct = scaled_dot_product
        self.packed: PackedLinear | None = None
        self.place: int | None = None  # for the network to set
        self.image_layers: tuple[ImageKeyValue, ...] = ()  # owned by the adapters that put them here

    def forward(self, x: Tensor, context: Context | None = None, images: Sequence[ImagePrompt] = ()) -> Tensor:
        query, key, value = map(self.split_heads, self.project(x, x if context is None else context))
        attended = self.join_heads(self.product(query, key, value))
        for layer, prompt in zip(self.image_layers, images, strict=False):  # without images a loaded adapter is silent
            attended = layer(attended, query, prompt, self)
        return self.to_out[0](attended)

    def project(self, x: Tensor, source: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [B, N or L, heads · d] each; in one product where the weights lie packed."""
        if isinstance(source, KeysValues):
            return self.to_q(x), *source.of(self.place)
        if self.is_cross_attention:
            return self.to_q(x), *self.keys_values(source)
        if self.packed is None or not self.packed.stands_for(self._together()):
            return self.to_q(x), self.to_k(source), self.to_v(source)
        return self.packed(x)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of a cross-attention layer for `context` [B, L, context_width]: [B, L, heads · d] each."""
        if self.packed is None or not self.packed.stands_for(self._together()):
            return self.to_k(context), self.to_v(context)
        return self.packed(context)

    def pack(self) -> None:
        """Lay the weights of query, key and value (of key and value, for cross-attention) side by side in memory."""
        self.packed = PackedLinear(self._together())

    def unpack(self) -> None:
        self.packed = None

    def _together(self) -> list[nn.Linear]:
        """The layers that share an input."""
        return [self.to_k, self.to_v] if self.is_cross_attention else [self.to_q, self.to_k, self.to_v]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # moving or casting gives every weight memory of its own
        super()._apply(fn, recurse)
        if self.packed is not None:
            self.pack()
        return self

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, N, heads · d] → [B, heads, N, d]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def join_heads(x: Tensor) -> Tensor:
        """[B, heads, N, d] → [B, N, heads · d]"""
        return x.transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """One linear layer gives value and gate; value · gelu(gate)."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer four times as wide, and back. The middle entry keeps diffusers' numbering: `net.0`, `net.2`."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each normalised before and added after. [B, N, width].

    With `only_cross_attention` the first attention looks at the context as well, instead of at the picture.
    """

    def __init__(self, width: int, *, heads: int, context_width: int, only_cross_attention: bool = False):
        super().__init__()
        self.only_cross_attention = only_cross_attention
        shape = {"heads": heads, "head_width": width // heads}
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, **shape, context_width=context_width if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, **shape, context_width=context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Context, images: Sequence[ImagePrompt] = ()) -> Tensor:
        x = self.attn1(self.norm1(x), context if self.only_cross_attention else None) + x
        x = self.attn2(self.norm2(x), context, images) + x
        return self.ff(self.norm3(x)) + x


class Transformer2DModel(nn.Module):
    """A stack of transformer blocks over the pixels of a feature map: [B, channels, h, w] → the same shape.

    `use_linear_projection`: projections in and out are linear layers (SD 2.x), not 1×1 convolutions (SD 1.x).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        depth: int,
        context_width: int,
        groups: int,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
    ):
        super().__init__()
        width = channels // heads * heads
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width) if use_linear_projection else nn.Conv2d(channels, width, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                width, heads=heads, context_width=context_width, only_cross_attention=only_cross_attention
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, channels) if use_linear_projection else nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor, context: Context, images: Sequence[ImagePrompt] = ()) -> Tensor:
        hidden = self.norm(x)
        if self.use_linear_projection:
            hidden = self.proj_in(_to_tokens(hidden))
        else:
            hidden = _to_tokens(self.proj_in(hidden))
        for block in self.transformer_blocks:
            hidden = block(hidden, context, images)
        if self.use_linear_projection:
            hidden = _to_picture(self.proj_out(hidden), x)
        else:
            hidden = self.proj_out(_to_picture(hidden, x))
        return hidden + x


def _to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h · w, C]"""
    return x.flatten(2).transpose(1, 2)


def _to_picture(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, h · w, C] → [B, C, h, w], with the height, width and memory format of `like`."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last)
    picture = tokens.transpose(1, 2).unflatten(2, like.shape[-2:])
    return picture.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
