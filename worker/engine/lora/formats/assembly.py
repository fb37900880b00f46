"""From the tensors of one module, by role, to its delta: ranks and shapes are checked here, and nothing is dropped.

| family | roles it needs | may have |
| --- | --- | --- |
| LoRA | down [r, in(, y, x)], up [out, r(, 1, 1)] | mid [r, r, y, x] |
| LoHa | w1_a, w2_a [out, r]; w1_b, w2_b [r, in·y·x] | t1, t2 [r, r, y, x]: then w1_a, w2_a [r, out], the b's [r, in] |
| LoKr | w1 [a, b] or w1_a·w1_b; w2 [c, d(, y, x)] or w2_a·w2_b | t2 [r, r, y, x]: then w2_a [r, c], w2_b [r, d] |

(LoHa's and LoKr's roles have their family before them: `hada_w1_a`, `lokr_w1`.) Each may also have `alpha`, a number,
and one of `dora_scale` (LyCORIS) and `magnitude` (PEFT).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worker.engine.errors import LoraIncompatible, LoraInvalid
from worker.engine.lora.deltas import Decomposed, Delta, Hadamard, Kronecker, LowRank, through_core
from worker.engine.lora.formats.peft import AdapterConfig

Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]
ScaleOf = Callable[[int | None], float]
Inner = LowRank | Hadamard | Kronecker

_COMMON = {"alpha", "dora_scale", "magnitude"}


def assemble(name: str, shape: Shape, parts: Parts, config: AdapterConfig | None) -> Delta:
    """The delta of the target `name`, whose weight has `shape`.

    Raises `LoraInvalid` for roles that do not belong together or are missing, `LoraIncompatible` for shapes that do not
    fit each other or the weight.
    """
    families = {_family(role) for role in parts.keys() - _COMMON}
    if len(families) != 1:
        found = " and ".join(sorted(families)) or ", ".join(sorted(parts))
        raise LoraInvalid(f"{name}: the tensors of {found} do not make one LoRA")
    for role, tensor in parts.items():
        if not tensor.is_floating_point() and role != "alpha":
            raise LoraInvalid(f"{name}: {role} holds integers")
    build, allowed, required = _BUILDERS[families.pop()]
    missing, extra = required - parts.keys(), parts.keys() - allowed - _COMMON
    if missing or extra:
        wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(extra))} beside"
        raise LoraInvalid(f"{name}: the LoRA {wrong} {', '.join(sorted(parts.keys() & allowed))}")
    try:
        delta = build(parts, shape, lambda rank: _scale(name, parts, rank, config))
    except _Misfit as misfit:
        raise _incompatible(name, shape, parts, str(misfit)) from None
    return _decomposed(name, delta, parts, config)


class _Misfit(Exception):
    pass


def _low_rank(parts: Parts, shape: Shape, scale: ScaleOf) -> Inner:
    up, down = _matrix(parts["up"]), _matrix(parts["down"])
    rank = down.shape[0]
    if "mid" in parts:
        down = _with_core(parts["mid"], up, down, shape)
    _fit(up, down, shape)
    return LowRank(up, down, scale(rank), shape)


def _hadamard(parts: Parts, shape: Shape, scale: ScaleOf) -> Inner:
    factors: list[Tensor] = []
    for pair, core in (("hada_w1", "hada_t1"), ("hada_w2", "hada_t2")):
        up, down = _matrix(parts[f"{pair}_a"]), _matrix(parts[f"{pair}_b"])
        if core in parts:
            up = up.T
            down = _with_core(parts[core], up, down, shape)
        _fit(up, down, shape)
        factors += [up, down]
    return Hadamard(*factors, scale(factors[1].shape[0]), shape)


def _kronecker(parts: Parts, shape: Shape, scale: ScaleOf) -> Inner:
    first, first_down = _whole_or_product(parts, "lokr_w1")
    second, second_down = _whole_or_product(parts, "lokr_w2")
    ranks = {down.shape[0] for down in (first_down, second_down) if down is not None}
    if len(ranks) > 1:
        raise _Misfit(f"factors of the ranks {sorted(ranks)}")
    rows = first.shape[0]
    columns = (first if first_down is None else first_down).shape[1]
    if rows == 0 or columns == 0 or shape[0] % rows or shape[1] % columns:
        raise _Misfit(f"a first factor of {rows}×{columns}")
    part = (shape[0] // rows, shape[1] // columns, *shape[2:])
    if "lokr_t2" in parts:
        second = second.T
        second_down = _with_core(parts["lokr_t2"], second, second_down, part)
    if second_down is not None:
        _fit(second, second_down, part)
    elif second.numel() != math.prod(part) or second.shape[0] != part[0]:
        raise _Misfit(f"a second factor of {_by(second.shape)} where {_by(part)} is due")
    if first_down is not None and first.shape[1] != first_down.shape[0]:
        raise _Misfit("first factors of different ranks")
    return Kronecker(first, second, scale(max(ranks, default=None)), shape, first_down, second_down)


_LORA = {"down", "up", "mid"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}
_LOKR = {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
_BUILDERS = {
    "LoRA": (_low_rank, _LORA, {"down", "up"}),
    "LoHa": (_hadamard, _LOHA, _LOHA - {"hada_t1", "hada_t2"}),
    "LoKr": (_kronecker, _LOKR, set()),
}


def _family(role: str) -> str:
    return {"hada": "LoHa", "lokr": "LoKr"}.get(role[:4], "LoRA")


def _whole_or_product(parts: Parts, name: str) -> tuple[Tensor, Tensor | None]:
    given = {role for role in (name, f"{name}_a", f"{name}_b") if role in parts}
    if given == {name}:
        return _matrix(parts[name]), None
    if given != {f"{name}_a", f"{name}_b"}:
        raise _Misfit(f"neither {name} alone nor both {name}_a and {name}_b")
    return _matrix(parts[f"{name}_a"]), _matrix(parts[f"{name}_b"])


def _matrix(tensor: Tensor) -> Tensor:
    """Two axes: a convolution's kernel axes go with its inputs, the 1×1 of an `up` vanish."""
    if tensor.dim() < 2:
        raise _Misfit(f"a factor of shape {_by(tensor.shape)}")
    return tensor.flatten(1)


def _with_core(core: Tensor, up: Tensor, down: Tensor, shape: Shape) -> Tensor:
    if core.dim() != 4 or core.shape[2:] != shape[2:] or core.shape[:2] != (up.shape[1], down.shape[0]):
        raise _Misfit(f"a core of {_by(core.shape)}")
    return through_core(core, down)


def _fit(up: Tensor, down: Tensor, shape: Shape) -> None:
    if up.shape[1] != down.shape[0]:
        raise _Misfit(f"factors of the ranks {up.shape[1]} and {down.shape[0]}")
    if (up.shape[0], down.shape[1]) != (shape[0], math.prod(shape[1:])):
        raise _Misfit(f"a change of {up.shape[0]}×{down.shape[1]}")


def _scale(name: str, parts: Parts, rank: int | None, config: AdapterConfig | None) -> float:
    """alpha ÷ rank, from the tensor `alpha` or from PEFT's config; 1 where a file has neither."""
    path = name.partition(".")[2]
    if "alpha" not in parts:
        return 1.0 if config is None else config.scale(path, rank)
    if config is not None:
        raise LoraInvalid(f"{name}: the LoRA has both a tensor `alpha` and a PEFT config; which one holds is unknown")
    if parts["alpha"].numel() != 1:
        raise LoraInvalid(f"{name}: alpha has {parts['alpha'].numel()} values, not one")
    # LyCORIS: a Kronecker product of two full factors has no rank, and its alpha is not used.
    return 1.0 if rank is None else parts["alpha"].item() / rank


def _decomposed(name: str, delta: Inner, parts: Parts, config: AdapterConfig | None) -> Delta:
    if "dora_scale" in parts and "magnitude" in parts:
        raise LoraInvalid(f"{name}: the LoRA has both a dora_scale and a lora_magnitude_vector")
    if config is not None and config.dora and "magnitude" not in parts:
        raise LoraInvalid(f"{name}: the adapter's config says use_dora, but lora_magnitude_vector is missing")
    out, columns, rest = delta.shape[0], delta.shape[1], (1,) * (len(delta.shape) - 2)
    if "magnitude" in parts:
        if parts["magnitude"].numel() != out:
            raise _incompatible(name, delta.shape, parts, "a magnitude for another number of rows")
        return Decomposed(delta, parts["magnitude"].reshape(out, 1, *rest), inside=True)
    if "dora_scale" not in parts:
        return delta
    # Older LyCORIS took the norm of each input's column, newer that of each output's row: the shape tells.
    for expected in ((out, 1, *rest), (1, columns, *rest)):
        if parts["dora_scale"].shape == expected:
            return Decomposed(delta, parts["dora_scale"], inside=False)
    raise _incompatible(name, delta.shape, parts, f"a dora_scale of {_by(parts['dora_scale'].shape)}")


def _incompatible(name: str, shape: Shape, parts: Parts, misfit: str) -> LoraIncompatible:
    found = ", ".join(f"{role} {_by(tensor.shape)}" for role, tensor in sorted(parts.items()))
    return LoraIncompatible(
        f"{name}: the model's weight is {_by(shape)}, the LoRA has {misfit} ({found}); "
        "it was made for another base model"
    )


def _by(shape: Shape | torch.Size) -> str:
    return "×".join(map(str, shape)) or "a number"
