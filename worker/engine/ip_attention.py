"""Image prompts in cross-attention: keys and values of pictures beside the text's (https://arxiv.org/abs/2308.06721).

out = attend(q, text) + Σ scale · attend(q, picture), the sum over adapters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.conditions import ImageKeysValues
from worker.engine.errors import InvalidParameter

if TYPE_CHECKING:
    from worker.engine.attention import Attention

ImageTokens: TypeAlias = Tensor | ImageKeysValues
"""[B, tokens, D] or [B, pictures, tokens, D], or what the layers made of it."""
Scale: TypeAlias = float | Sequence[float]  # one for all pictures of an adapter, or with masks one a picture


@dataclass(frozen=True)
class ImagePrompt:
    """One adapter's pictures.

    `masks` [1, pictures, H, W] in 0…1: where each picture has a say; then every picture is attended to by itself.
    """

    tokens: ImageTokens
    masks: Tensor | None = None

    @property
    def pictures(self) -> int | None:
        """How many; None where they cannot be told apart."""
        if isinstance(self.tokens, ImageKeysValues):
            return self.tokens.pictures
        return self.tokens.shape[1] if self.tokens.ndim == 4 else None


class ImageKeyValue(nn.Module):
    """One adapter's keys and values for one cross-attention layer, and how much they count there."""

    def __init__(self, token_width: int, inner_width: int):
        super().__init__()
        self.to_k_ip = nn.Linear(token_width, inner_width, bias=False)
        self.to_v_ip = nn.Linear(token_width, inner_width, bias=False)
        self.scale: Scale = 1.0

    def forward(self, attended: Tensor, query: Tensor, prompt: ImagePrompt, layer: "Attention") -> Tensor:
        """`attended` [B, N, heads · d] with what the pictures add to it; `query` is [B, heads, N, d]."""
        for scale, picture, mask in self._shares(prompt):
            key, value = map(layer.split_heads, self._looked_at(prompt.tokens, picture, layer.place))
            seen = layer.join_heads(layer.product(query, key, value))
            attended = attended + scale * (seen if mask is None else seen * token_mask(mask, query.shape[2]).to(seen))
        return attended

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For `tokens` [B, tokens, D]: [B, tokens, heads · d] each."""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)

    def _looked_at(self, tokens: ImageTokens, picture: int | None, place: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values of this picture, or of all together: made here, unless they were made before."""
        if isinstance(tokens, ImageKeysValues):
            return tokens.of(place) if picture is None else tokens.of_picture(place, picture)
        return self.keys_values(tokens.flatten(1, -2) if picture is None else tokens[:, picture])

    def _shares(self, prompt: ImagePrompt) -> Iterator[tuple[float, int | None, Tensor | None]]:
        """(scale, picture, mask) of everything that is attended to by itself and counts; None: all pictures."""
        many = isinstance(self.scale, Sequence)
        if prompt.masks is None:
            if many:
                raise InvalidParameter("scale", "of one number a picture needs `ip_adapter_masks`")
            if self.scale != 0:
                yield self.scale, None, None
            return
        pictures = prompt.masks.shape[1]
        scales = self.scale if many else [self.scale] * pictures
        if len(scales) != pictures:
            raise InvalidParameter("scale", f"has {len(scales)} numbers and the adapter {pictures} pictures")
        if any(scales):
            for picture, scale in enumerate(scales):
                yield scale, picture, prompt.masks[:, picture]


def token_mask(mask: Tensor, tokens: int) -> Tensor:
    """A mask [1, H, W] on a feature map of `tokens` pixels whose sides are as those of the mask: [1, tokens, 1].

    Where no grid of those proportions has so many pixels, the end is filled with zeros or cut off.
    """
    height, width = mask.shape[-2:]
    rows = max(1, int(math.sqrt(tokens * height / width)))
    rows += tokens % rows != 0
    columns = tokens // rows
    small = F.interpolate(mask[None], size=(rows, columns), mode="bicubic")[0].flatten(1)
    return F.pad(small, (0, max(0, tokens - rows * columns)))[:, :tokens, None]
