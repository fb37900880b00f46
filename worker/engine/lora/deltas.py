"""What a LoRA adds to one weight, kept in factors: four ways to write a matrix ΔW with few numbers.

| class | ΔW ÷ scale | paper |
| --- | --- | --- |
| `LowRank` | B·A | LoRA, Hu et al. 2021, arXiv:2106.09685 |
| `Hadamard` | (B₁·A₁) ⊙ (B₂·A₂) | FedPara, Hyeon-Woo et al. 2022, arXiv:2108.06098; LoHa in LyCORIS, arXiv:2309.14859 |
| `Kronecker` | W₁ ⊗ W₂ | KronA, Edalati et al. 2022, arXiv:2212.10650; LoKr in LyCORIS |
| `Decomposed` | of W₀, too: see there | DoRA, Liu et al. 2024, arXiv:2402.09353 |

Every delta has the `shape` of its base weight, [out, in] or [out, in, height, width], and a `scale` (alpha ÷ rank) that
is part of ΔW. A Tucker core (`core`, [r, r, height, width]) stands between the factors of a convolution; it is
multiplied into the input's factor, which makes the product an ordinary one:
ΔW[o,i,y,x] = Σ_mn B[o,m]·core[m,n,y,x]·A[n,i].
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Delta(Protocol):
    shape: tuple[int, ...]

    def change(self, base: Tensor, strength: float) -> Tensor:
        """What is to be added to `base` (of `shape`) at `strength`; computed in base's dtype and on its device."""

    def to(self, device: torch.device) -> Self:
        """The same delta with its factors on `device`."""


class _Factors:
    """What the deltas share: factors that move together."""

    def to(self, device: torch.device) -> Self:
        moved = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | _Factors)
        }
        return dataclasses.replace(self, **moved)


class _Linear(_Factors):
    """A ΔW that does not depend on the base weight and grows with the strength."""

    shape: tuple[int, ...]

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        raise NotImplementedError

    def change(self, base: Tensor, strength: float) -> Tensor:
        return self.to(base.device).weight(base.dtype).mul_(strength)


@dataclass(frozen=True)
class LowRank(_Linear):
    """`up` B [out, r], `down` A [r, in·height·width], ΔW = scale·B·A. What a batched product of many LoRAs needs."""

    up: Tensor
    down: Tensor
    scale: float
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.up.to(dtype) @ self.down.to(dtype)).mul_(self.scale).view(self.shape)


@dataclass(frozen=True)
class Hadamard(_Linear):
    """`up1`, `up2` [out, r], `down1`, `down2` [r, in·height·width], ΔW = scale·(up1·down1) ⊙ (up2·down2)."""

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor
    scale: float
    shape: tuple[int, ...]

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        first = self.up1.to(dtype) @ self.down1.to(dtype)
        return first.mul_(self.up2.to(dtype) @ self.down2.to(dtype)).mul_(self.scale).view(self.shape)


@dataclass(frozen=True)
class Kronecker(_Linear):
    """ΔW = scale·`first` ⊗ `second`: [a, b] ⊗ [c, d, …] = [a·c, b·d, …].

    Either may be given as a product: `first` with `first_down` (first·first_down), `second` with `second_down`, whose
    columns are then d·height·width.
    """

    first: Tensor
    second: Tensor
    scale: float
    shape: tuple[int, ...]
    first_down: Tensor | None = None
    second_down: Tensor | None = None

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        first = _product(self.first, self.first_down, dtype)
        second = _product(self.second, self.second_down, dtype)
        out, columns = self.shape[0] // first.shape[0], self.shape[1] // first.shape[1]
        second = second.reshape(out, columns, *self.shape[2:])
        return torch.kron(first.view(*first.shape, *(1 for _ in self.shape[2:])), second).mul_(self.scale)


@dataclass(frozen=True)
class Decomposed(_Factors):
    """DoRA: the direction of W₀ + ΔW with a length learnt for each row, or in older files for each column.

    With V = W₀ + ΔW and its norm taken over all axes but one (the rows' where `magnitude` is [out, 1, …], the columns'
    where it is [1, in, …]), the merged weight is magnitude·V ÷ ‖V‖. What a strength s ≠ 1 means differs by origin:
    PEFT puts it inside, V = W₀ + s·ΔW (`inside`); LyCORIS' formula, as A1111 and ComfyUI apply it, outside,
    W₀ + s·(magnitude·V ÷ ‖V‖ - W₀).
    """

    inner: LowRank | Hadamard | Kronecker
    magnitude: Tensor
    inside: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def change(self, base: Tensor, strength: float) -> Tensor:
        magnitude = self.magnitude.to(base.device, base.dtype)
        kept = next(axis for axis in (0, 1) if magnitude.shape[axis] == magnitude.numel())
        direction = base + self.inner.change(base, strength if self.inside else 1.0)
        axes = [axis for axis in range(base.dim()) if axis != kept]
        # LyCORIS' guard: a row of zeros keeps its direction, none.
        norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True).add_(torch.finfo(base.dtype).eps)
        change = direction.mul_(magnitude / norm).sub_(base)
        return change if self.inside else change.mul_(strength)


def through_core(core: Tensor, down: Tensor) -> Tensor:
    """A Tucker `core` [m, n, height, width] times the input's factor [n, in]: [m, in·height·width]."""
    joined = torch.einsum("mnyx,ni->miyx", core.float(), down.float())
    return joined.reshape(core.shape[0], math.prod(joined.shape[1:]))


def _product(left: Tensor, right: Tensor | None, dtype: torch.dtype) -> Tensor:
    return left.to(dtype) if right is None else left.to(dtype) @ right.to(dtype)
