"""A layer's own addition for each row of a batch: y[row] += B(row)·A(row)·x[row], for linear layers and convolutions.

Two ways to compute it, with one signature: call with the layer's input x and output y, and y holds the sum. `Separate`
makes one plain product for each run of rows that share factors; `Batched` one for all runs at once, which spares a GPU
most of the launches (Chen et al. 2023, Punica, arXiv:2310.18547; Sheng et al. 2023, S-LoRA, arXiv:2311.03285), and for
which the factors are padded with zeros to a common rank. A convolution's A is a convolution of the same stride and
padding to r channels, its B a product at each pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine.lora.deltas import LowRank
from worker.engine.lora.low_rank import low_rank
from worker.engine.lora.sets import Terms

Layer: TypeAlias = nn.Linear | nn.Conv2d

BUCKETS = (8, 16, 32, 64, 128)


def bucket(rank: int) -> int:
    """The rank that factors are padded to: the next of 8, 16, 32, 64, 128, then the next multiple of 128."""
    return next((size for size in BUCKETS if rank <= size), -(-rank // 128) * 128)


class Factors(NamedTuple):
    """What one set adds to one layer: `down` A [r, in] or [r, in, height, width], `up` B [out, r], scales in B."""

    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, terms: Terms, layer: Layer) -> "Factors":
        """The sum of these terms as one product, in the dtype and on the device of the layer's weight.

        Anywhere but on a CPU at a rank of `BUCKETS`: kernels want multiples of eight, and stacks want equal ranks.
        """
        weight = layer.weight
        ups, downs = zip(*(_scaled(low_rank(delta), strength, weight) for delta, strength in terms), strict=True)
        up, down = (ups[0], downs[0]) if len(terms) == 1 else (torch.cat(ups, dim=1), torch.cat(downs))
        down = down.view(-1, *weight.shape[1:])
        if weight.dim() == 4 and not weight.is_contiguous():
            down = down.contiguous(memory_format=torch.channels_last)
        factors = cls(down, up)
        return factors if weight.device.type == "cpu" else factors.padded(bucket(factors.rank))

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def padded(self, rank: int) -> "Factors":
        """The same product at this rank, which is not smaller."""
        more = rank - self.rank
        if more == 0:
            return self
        return Factors(F.pad(self.down, (0, 0) * (self.down.dim() - 1) + (0, more)), F.pad(self.up, (0, more)))


class Run(NamedTuple):
    """Rows `start` to `stop` of the batch share `factors`."""

    start: int
    stop: int
    factors: Factors


class Separate:
    """One product for each run."""

    def __init__(self, layer: Layer, runs: Sequence[Run]):
        self.layer, self.runs = layer, tuple(runs)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        for start, stop, (down, up) in self.runs:
            part = y[start:stop]
            if isinstance(self.layer, nn.Linear):
                hidden = F.linear(x[start:stop], down)
                part.view(-1, part.shape[-1]).addmm_(hidden.flatten(0, -2), up.t())
            else:
                hidden = _convolved(self.layer, x[start:stop], down).flatten(2)
                part.view(*part.shape[:2], -1).baddbmm_(up.expand(len(part), -1, -1), hidden)


@dataclass(frozen=True)
class Batched:
    """One product for all: the batch as groups of equally many rows, each of which has factors of its own.

    `down` A [groups, r, in] or [groups · r, in, height, width]; `up` B [groups, out, r], for a convolution
    [rows, out, r].
    """

    layer: Layer
    groups: int
    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, layer: Layer, runs: Sequence[Run], rows: int) -> "Batched":
        """Groups as large as the runs allow; a group that no run covers has zeros for its factors."""
        size = math.gcd(rows, *(edge for run in runs for edge in run[:2]))
        rank = bucket(max(run.factors.rank for run in runs))
        chosen: list[Factors | None] = [None] * (rows // size)
        for start, stop, factors in runs:
            chosen[start // size : stop // size] = [factors.padded(rank)] * ((stop - start) // size)
        if any(factors is None for factors in chosen):
            like = runs[0].factors.padded(rank)
            nothing = Factors(torch.zeros_like(like.down), torch.zeros_like(like.up))
            chosen = [nothing if factors is None else factors for factors in chosen]
        downs, ups = zip(*chosen, strict=True)
        if isinstance(layer, nn.Linear):
            return cls(layer, len(chosen), torch.stack(downs), torch.stack(ups))
        return cls(layer, len(chosen), torch.cat(downs), torch.stack(ups).repeat_interleave(size, dim=0))

    def __call__(self, x: Tensor, y: Tensor) -> None:
        if isinstance(self.layer, nn.Linear):
            hidden = torch.bmm(x.reshape(self.groups, -1, x.shape[-1]), self.down.transpose(1, 2))
            y.view(self.groups, -1, y.shape[-1]).baddbmm_(hidden, self.up.transpose(1, 2))
            return
        grouped = x.unflatten(0, (self.groups, -1)).transpose(0, 1).flatten(1, 2)
        hidden = _convolved(self.layer, grouped, self.down, self.groups)
        hidden = hidden.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(0, 1).flatten(2)
        y.view(*y.shape[:2], -1).baddbmm_(self.up, hidden)


def _scaled(delta: LowRank, strength: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    """B times all that scales it, rounded once, and A, both as the weight is. What is so already is not copied."""
    up, down = delta.up.to(weight.device), delta.down.to(weight.device)
    exact = torch.promote_types(up.dtype, weight.dtype)
    return (up.to(exact) * (strength * delta.scale)).to(weight.dtype), down.to(weight.dtype)


def _convolved(layer: nn.Conv2d, x: Tensor, down: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation, groups)


Product: TypeAlias = Separate | Batched


def product_of(layer: Layer, runs: Sequence[Run], rows: int) -> Product:
    """The quicker of the two: a CPU gains nothing from fewer calls, and one run is one call in any case."""
    if len(runs) == 1 or layer.weight.device.type == "cpu":
        return Separate(layer, runs)
    return Batched.of(layer, runs, rows)
