"""Large pictures through the autoencoder in overlapping tiles, blended linearly where they overlap."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's side


@dataclass(frozen=True)
class Tiling:
    """Sides of a tile, in pixels of what goes in (`side_in`) and of what comes out (`side_out`)."""

    side_in: int
    side_out: int

    def wanted(self, x: Tensor) -> bool:
        """Whether `x` [B, C, h, w] is larger than one tile."""
        return max(x.shape[-2:]) > self.side_in

    def run(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """`network` over `x` [B, C, h, w], tile by tile: memory of one tile, whatever the picture's size.

        Each tile is blended into the one above it, then into the one on its left, over a quarter of its side.
        """
        step = max(1, int(self.side_in * (1 - OVERLAP)))
        extent = int(self.side_out * OVERLAP)
        kept = self.side_out - extent
        above: list[Tensor] = []
        rows = []
        for top in range(0, x.shape[2], step):
            row: list[Tensor] = []
            for column, left in enumerate(range(0, x.shape[3], step)):
                tile = network(x[:, :, top : top + self.side_in, left : left + self.side_in])
                if above:
                    tile = blend(above[column], tile, extent, dim=2)
                if row:
                    tile = blend(row[-1], tile, extent, dim=3)
                row.append(tile)
            rows.append(torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3))
            above = row
        return torch.cat(rows, dim=2)


def blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """`after` with its first `extent` lines along `dim` faded in over the last ones of `before`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    shape = [1] * after.ndim
    shape[dim] = extent
    share = (torch.arange(extent, dtype=torch.float64, device=after.device) / max(extent, 1)).view(shape)
    last = before.narrow(dim, before.shape[dim] - extent, extent)
    first = after.narrow(dim, 0, extent)
    faded = last * (1 - share).to(after.dtype) + first * share.to(after.dtype)
    return torch.cat([faded, after.narrow(dim, extent, after.shape[dim] - extent)], dim=dim)
