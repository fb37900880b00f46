"""What a UNet makes of time, of text and of pictures that are prompts: the same at every step, so made once.

They do not change the result: they are the very terms that the layers would compute. Each is one tensor with a row for
each row of a batch, so that rows of many requests are put together with one copy. They hold for the weights they were
made with: for a UNet with other LoRAs or image adapters they must be made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from worker.engine.errors import InvalidParameter


@dataclass(frozen=True)
class _Rows:
    """`values` [rows, …]: of each row, all layers' numbers one after the other; `widths` tells them apart."""

    values: Tensor
    widths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, part: slice) -> Self:
        """These rows alone, without a copy."""
        return replace(self, values=self.values[part])

    def repeated(self, times: int) -> Self:
        """Each row so many times, one beside the other."""
        return replace(self, values=self.values.repeat_interleave(times, dim=0))

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all. Raises `InvalidParameter` where they are of different kinds (texts of unlike length)."""
        if any(part._kind != parts[0]._kind for part in parts):
            raise InvalidParameter("parts", "must be of one model, and of texts of one length or as many pictures")
        return parts[0] if len(parts) == 1 else replace(parts[0], values=torch.cat([part.values for part in parts]))

    @property
    def _kind(self) -> tuple[Any, ...]:
        """All but the numbers."""
        return self.values.shape[1:], *(getattr(self, field.name) for field in fields(self)[1:])


@dataclass(frozen=True)
class TimeStates(_Rows):
    """What each residual block adds for a timestep, [T, Σ channels]: `UNet2DConditionModel.time_states` makes them."""

    def of(self, place: int) -> Tensor:
        """[T, channels] for the residual block at this place."""
        begin = sum(self.widths[:place])
        return self.values[:, begin : begin + self.widths[place]]


@dataclass(frozen=True)
class _Pairs(_Rows):
    """The keys and values of `length` tokens for each cross-attention layer: [B, Σ 2 · length · width]."""

    length: int

    @classmethod
    def laid_out(cls, pairs: Sequence[tuple[Tensor, Tensor]], tokens: Tensor, **others: Any) -> Self:
        """What the layers, in the order of their places, made of `tokens` [B, length, D]: [B, length, width] each."""
        none = tokens.new_empty(len(tokens), 0)  # where there is no such layer
        values = torch.cat([none, *(part.flatten(1) for pair in pairs for part in pair)], dim=1)
        return cls(values, tuple(key.shape[2] for key, _ in pairs), tokens.shape[1], **others)

    def of(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, length, width] of the layer at this place."""
        begin, width = 2 * self.length * sum(self.widths[:place]), self.widths[place]
        both = self.values[:, begin : begin + 2 * self.length * width].unflatten(1, (2, self.length, width))
        return both[:, 0], both[:, 1]


@dataclass(frozen=True)
class KeysValues(_Pairs):
    """Of a text. `UNet2DConditionModel.text_keys_values` makes them."""


@dataclass(frozen=True)
class ImageKeysValues(_Pairs):
    """Of all pictures of one IP-Adapter, before scale and masks; of width 0 for layers that look at none.

    `pictures`: how many they are; None where their tokens came together, and so cannot be told apart by masks.
    `UNet2DConditionModel.image_keys_values` makes them.
    """

    pictures: int | None

    def of_picture(self, place: int, picture: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, length / pictures, width] of one picture for the layer at this place."""
        key, value = (both.unflatten(1, (self.pictures, -1))[:, picture] for both in self.of(place))
        return key, value
