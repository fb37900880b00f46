"""Deltas as products B·A: exactly, by the identities of their factors, where the rank stays small.

- `LowRank` is one already, of rank r.
- `Hadamard`: (B₁·A₁) ⊙ (B₂·A₂) = (B₁ ∗ B₂)·(A₁ ∗ A₂) of rank r₁·r₂, where a row of B₁ ∗ B₂ holds every product of
  a pair out of the two rows, and so a column of A₁ ∗ A₂ (Khatri and Rao 1968, https://www.jstor.org/stable/25049527).
- `Kronecker`: (P₁·Q₁) ⊗ (P₂·Q₂) = (P₁ ⊗ P₂)·(Q₁ ⊗ Q₂) of rank r₁·r₂, the mixed-product property. A factor that is
  kept whole is itself times the identity of its smaller side.
- `Decomposed` is none: DoRA divides by a norm of base and change together.
"""

import math

import torch
from torch import Tensor

from worker.engine.lora.deltas import Delta, Hadamard, Kronecker, LowRank

# Two products of this rank cost about as much as a layer of 512 × 512: beyond it, merging is better.
MOST_BY_IDENTITY = 256


def rank_of(delta: Delta) -> int | None:
    """The rank at which `low_rank` writes a delta; None where it cannot, or would exceed `MOST_BY_IDENTITY`."""
    match delta:
        case LowRank():
            return delta.rank
        case Hadamard():
            rank = len(delta.down1) * len(delta.down2)
        case Kronecker():
            rank = _inner(delta.first, delta.first_down) * _inner(delta.second, delta.second_down)
        case _:
            return None
    return rank if rank <= MOST_BY_IDENTITY else None


def low_rank(delta: Delta) -> LowRank:
    """The same change as factors B [out, r], A [r, in·height·width]; of products of factors, in float32.

    Raises `ValueError` for a delta of which `rank_of` is None.
    """
    if rank_of(delta) is None:
        raise ValueError(f"a {type(delta).__name__} of this size cannot be written as a small product: merge it")
    match delta:
        case LowRank():
            return delta
        case Hadamard():
            up = _pairs(delta.up1.float(), delta.up2.float())
            down = _pairs(delta.down1.float().t(), delta.down2.float().t()).t()
        case Kronecker():
            (p1, q1), (p2, q2) = _split(delta.first, delta.first_down), _split(delta.second, delta.second_down)
            up, down = torch.kron(p1, p2), torch.kron(q1, q2)
    return LowRank(up, down, delta.scale, delta.shape)


def _pairs(one: Tensor, two: Tensor) -> Tensor:
    """[n, a], [n, b] → [n, a·b]: in each row every product of a pair."""
    return (one[:, :, None] * two[:, None, :]).flatten(1)


def _inner(factor: Tensor, down: Tensor | None) -> int:
    """The inner width of `_split`."""
    return min(len(factor), math.prod(factor.shape[1:])) if down is None else len(down)


def _split(factor: Tensor, down: Tensor | None) -> tuple[Tensor, Tensor]:
    """P, Q in float32 with P·Q = the factor, its kernel's axes counted among the columns."""
    whole = factor.float().flatten(1).contiguous()  # torch.kron wants its memory in order
    if down is not None:
        return whole, down.float().contiguous()
    rows, columns = whole.shape
    one = torch.eye(min(rows, columns), device=whole.device)
    return (one, whole) if rows <= columns else (whole, one)
