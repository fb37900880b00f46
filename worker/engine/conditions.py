"""What a UNet makes of time and of text before it looks at a picture: the same at every step, so made once.

Neither changes the picture: they are the very terms that the layers would compute. Each is one tensor with a row for
each row of a batch, so that rows of many requests are put together with one copy. They hold for the weights they were
made with: for a UNet with other LoRAs they must be made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

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
        if any(part.values.shape[1:] != parts[0].values.shape[1:] or part.widths != parts[0].widths for part in parts):
            raise InvalidParameter("parts", "must be of one model, and of texts of one length")
        return parts[0] if len(parts) == 1 else replace(parts[0], values=torch.cat([part.values for part in parts]))


@dataclass(frozen=True)
class TimeStates(_Rows):
    """What each residual block adds for a timestep, [T, Σ channels]: `UNet2DConditionModel.time_states` makes them."""

    def of(self, place: int) -> Tensor:
        """[T, channels] for the residual block at this place."""
        begin = sum(self.widths[:place])
        return self.values[:, begin : begin + self.widths[place]]


@dataclass(frozen=True)
class KeysValues(_Rows):
    """The keys and values of a text of `length` tokens for each cross-attention layer: [B, Σ 2 · length · width].

    `UNet2DConditionModel.text_keys_values` makes them.
    """

    length: int

    def of(self, place: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, length, width] of the layer at this place."""
        begin, width = 2 * self.length * sum(self.widths[:place]), self.widths[place]
        both = self.values[:, begin : begin + 2 * self.length * width].unflatten(1, (2, self.length, width))
        return both[:, 0], both[:, 1]
