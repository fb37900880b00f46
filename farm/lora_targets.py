"""Whether a LoRA fits a model, told from the file's header and the model's published table, without torch.

The table is what the engine makes of a model (`worker.engine.lora.targets`): each module's shape, every spelling of
its name, and the ends that keys have. What is judged here is judged by the worker in the same way: keys that match
nothing, modules that the model does not have, tensors that make no LoRA, shapes that do not fit. Numbers (alpha, NaN)
and PEFT's settings are in no header; those only the worker sees.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from farm.errors import LoraIncompatible, LoraInvalid, LoraNoEffect, Misconfigured
from farm.weights import Header

TABLE_VERSION = 1

Shape = tuple[int, ...]
Roles = Mapping[str, Shape]

_COMMON = {"alpha", "dora_scale", "magnitude"}
_ALLOWED = {
    "LoRA": {"down", "up", "mid"},
    "LoHa": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
    "LoKr": {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"},
}
_REQUIRED = {"LoRA": {"down", "up"}, "LoHa": _ALLOWED["LoHa"] - {"hada_t1", "hada_t2"}, "LoKr": set[str]()}
# What a key looks like → who writes such keys; the first that fits is told.
_WRITERS = (
    ("kohya", re.compile(r"(lora_unet_|lora_te1?_|lycoris_)")),
    ("PEFT", re.compile(r".*base_model\.model\.")),
    ("diffusers, PEFT", re.compile(r".*\.(lora_[AB]\.|hada_|lokr_)")),
    ("diffusers before 0.22", re.compile(r".*(\.lora\.(down|up)|_lora\.(down|up)|lora_linear_layer)")),
)
# One tensor of each module, whose first side is the rank.
_DOWN = re.compile(r"(lora_A|lora_down|lora\.down|lora_linear_layer\.down|hada_w1_b|lokr_w2_b)(\.|$)")


@dataclass(frozen=True)
class LoraFacts:
    """What a header tells of a LoRA. `families` counts modules by kind, `ranks` by rank, `components` by part."""

    written_by: str
    modules: int
    families: Mapping[str, int]
    ranks: Mapping[int, int]
    components: Mapping[str, int]


class TargetTable:
    """A model's published table. `stems`: a spelling → the module's name; `shapes`: its weight's."""

    def __init__(self, shapes: Mapping[str, Shape], stems: Mapping[str, str], leaves: Iterable[tuple[str, str]]):
        self.shapes, self.stems = shapes, stems
        self._leaves = [(re.compile(f"(.+?){pattern}"), role) for pattern, role in leaves]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The table that the engine wrote. Raises Misconfigured for another version, or none."""
        try:
            if data["version"] != TABLE_VERSION:
                raise Misconfigured(
                    f"The LoRA target table is of version {data['version']!r}; this release reads {TABLE_VERSION}."
                )
            shapes = {name: tuple(target["shape"]) for name, target in data["targets"].items()}
            return cls(shapes, data["stems"], [(pattern, role) for pattern, role in data["leaves"]])
        except (KeyError, TypeError, AttributeError, ValueError, re.error):
            raise Misconfigured("This is no LoRA target table; publish the model again.") from None

    def split(self, key: str) -> tuple[str, str | None]:
        """A key's stem and the role of its tensor; None where no format knows such an end."""
        for pattern, role in self._leaves:
            if match := pattern.fullmatch(key):
                return match[1], role
        return key, None

    def judge(self, header: Header) -> LoraFacts:
        """What the file is, if this model can wear it.

        Raises LoraNoEffect (not one key matches), LoraIncompatible (modules or shapes of another base), LoraInvalid.
        """
        parts: dict[str, dict[str, Shape]] = {}
        unread, unmatched = [], []
        for key, tensor in header.tensors.items():
            stem, role = self.split(key)
            if role is None:
                unread.append(key)
            elif stem not in self.stems:
                unmatched.append(key)
            elif role in (roles := parts.setdefault(self.stems[stem], {})):
                raise LoraInvalid(f"{key} gives {self.stems[stem]} a second {role}; one file, one adapter.")
            else:
                roles[role] = tensor.shape
        total = len(header.tensors)
        if not parts:
            why = "it was made for another base model" if unmatched else "it is no LoRA of a supported format"
            raise LoraNoEffect(f"Not one of its {total} keys matches this model ({_some(unmatched or unread)}); {why}.")
        if unmatched:
            raise LoraIncompatible(
                f"{len(unmatched)} of its {total} keys are for modules that this model does not have "
                f"({_some(unmatched)}); it was made for another base model."
            )
        if unread:
            raise LoraInvalid(f"{len(unread)} of its {total} keys belong to no supported format ({_some(unread)}).")
        for name, roles in parts.items():
            check_module(name, self.shapes[name], roles)
        return facts_of(parts, header)


def facts_of(parts: Mapping[str, Roles], header: Header) -> LoraFacts:
    """`parts`: a module's name (its component first) → the shapes of its tensors, by role."""
    first = next(iter(header.tensors))
    written_by = next((who for who, pattern in _WRITERS if pattern.match(first)), "unknown")
    families = Counter(family_of(roles) + (" + DoRA" if roles.keys() & {"dora_scale", "magnitude"} else "")
                       for roles in parts.values())  # fmt: skip
    ranks = Counter(rank for roles in parts.values() if (rank := rank_of(roles)) is not None)
    components = Counter(name.partition(".")[0] for name in parts)
    return LoraFacts(written_by, len(parts), dict(families), dict(sorted(ranks.items())), dict(components))


def glimpse(header: Header) -> LoraFacts:
    """What a file looks like, where no model's table is at hand: told by its keys, judged by nothing."""
    families: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    for key, tensor in header.tensors.items():
        if (match := _DOWN.search(key)) and tensor.shape:
            families[{"hada": "LoHa", "lokr": "LoKr"}.get(match[1][:4], "LoRA")] += 1
            ranks[tensor.shape[0]] += 1
    first = next(iter(header.tensors))
    written_by = next((who for who, pattern in _WRITERS if pattern.match(first)), "unknown")
    return LoraFacts(written_by, sum(families.values()), dict(families), dict(sorted(ranks.items())), {})


def family_of(roles: Iterable[str]) -> str:
    """LoRA, LoHa or LoKr. Raises LoraInvalid for tensors of several."""
    families = {{"hada": "LoHa", "lokr": "LoKr"}.get(role[:4], "LoRA") for role in roles if role not in _COMMON}
    if len(families) != 1:
        raise LoraInvalid(f"The tensors {', '.join(sorted(roles))} do not make one LoRA.")
    return families.pop()


def rank_of(roles: Roles) -> int | None:
    for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if shape := roles.get(role):
            return shape[0]
    return None


def check_module(name: str, weight: Shape, roles: Roles) -> None:
    """Raises LoraInvalid for tensors that belong together in no format, LoraIncompatible for shapes that do not fit."""
    family = family_of(roles)
    missing, extra = _REQUIRED[family] - roles.keys(), roles.keys() - _ALLOWED[family] - _COMMON
    if missing or extra:
        wrong = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(extra))} beside its own"
        raise LoraInvalid(f"{name}: the {family} {wrong}.")
    fits = {"LoRA": _fits_lora, "LoHa": _fits_loha, "LoKr": _fits_lokr}[family](roles, weight)
    if not fits:
        found = ", ".join(f"{role} {_by(shape)}" for role, shape in sorted(roles.items()))
        raise LoraIncompatible(
            f"{name}: the model's weight is {_by(weight)}, the LoRA has {found}; it was made for another base model."
        )


def _fits_lora(roles: Roles, weight: Shape) -> bool:
    return _pair(roles["up"], roles["down"], roles.get("mid"), weight)


def _fits_loha(roles: Roles, weight: Shape) -> bool:
    pairs = ((f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}") for n in (1, 2))
    return all(
        _pair(tuple(reversed(roles[a])) if core in roles else roles[a], roles[b], roles.get(core), weight)
        for a, b, core in pairs
    )


def _fits_lokr(roles: Roles, weight: Shape) -> bool:
    first, second = _factor(roles, "lokr_w1"), _factor(roles, "lokr_w2")
    if first is None or second is None or len({down[0] for _, down in (first, second) if down}) > 1:
        return False
    (up, down), (other_up, other_down) = first, second
    rows, columns = up[0], math.prod((down or up)[1:])
    if not rows or not columns or weight[0] % rows or weight[1] % columns:
        return False
    rest = (weight[0] // rows, weight[1] // columns, *weight[2:])
    if down and math.prod(up[1:]) != down[0]:
        return False
    if other_down:
        core = roles.get("lokr_t2")
        return _pair(tuple(reversed(other_up)) if core else other_up, other_down, core, rest)
    return "lokr_t2" not in roles and other_up[0] == rest[0] and math.prod(other_up) == math.prod(rest)


def _factor(roles: Roles, name: str) -> tuple[Shape, Shape | None] | None:
    """A Kronecker factor: whole, or as a product of two."""
    given = {role for role in (name, f"{name}_a", f"{name}_b") if role in roles}
    if any(len(roles[role]) < 2 for role in given):
        return None
    if given == {name}:
        return roles[name], None
    return (roles[f"{name}_a"], roles[f"{name}_b"]) if given == {f"{name}_a", f"{name}_b"} else None


def _pair(up: Shape, down: Shape, core: Shape | None, weight: Shape) -> bool:
    """Whether up·down (through a core, for convolutions) is a change of a weight of this shape."""
    if len(up) < 2 or len(down) < 2:
        return False
    rank, inputs = down[0], math.prod(down[1:])
    if core is not None:
        if len(core) != 4 or core[2:] != weight[2:] or core[:2] != (math.prod(up[1:]), rank):
            return False
        inputs, rank = inputs * math.prod(core[2:]), core[0]
    return math.prod(up[1:]) == rank and (up[0], inputs) == (weight[0], math.prod(weight[1:]))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a number"
