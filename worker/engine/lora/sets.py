"""A LoRA set: adapters with their strengths, what they add to each weight, and the name of that sum."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from worker.engine.errors import InvalidParameter, LoraIncompatible
from worker.engine.lora.deltas import Delta
from worker.engine.lora.strengths import BlockStrength, Strength
from worker.engine.lora.targets import TargetTable
from worker.engine.lora.weights import LoraWeights


class Adapter(NamedTuple):
    """A LoRA and how strongly it acts on each component; None leaves the component alone."""

    lora: LoraWeights
    unet: Strength | None = 1.0
    text_encoder: Strength | None = 1.0

    def strength(self, name: str) -> float | None:
        """The strength for the target `name`."""
        component, _, path = name.partition(".")
        strength = self.text_encoder if component == "text_encoder" else self.unet
        return strength.at(path) if isinstance(strength, BlockStrength) else strength


# What is added to one weight: each delta with its strength.
Terms = tuple[tuple[Delta, float], ...]


def terms_of(adapters: Sequence[Adapter], table: TargetTable, component: str | None = None) -> dict[str, Terms]:
    """What a set adds to each target it touches, in all components or in one.

    Raises `LoraIncompatible` (a LoRA read for another model), `InvalidParameter` (a strength that is not finite).
    """
    terms: dict[str, Terms] = {}
    for adapter in adapters:
        for name, delta in adapter.lora.deltas.items():
            if component is not None and name.partition(".")[0] != component:
                continue
            target = table.targets.get(name)
            if target is None or target.shape != delta.shape:
                raise LoraIncompatible(f"{adapter.lora.source} was read for another model: {name} does not fit")
            strength = adapter.strength(name)
            if strength is None:
                continue
            if not math.isfinite(strength):
                raise InvalidParameter("scale", f"must be finite, and is {strength} for {name}")
            terms[name] = (*terms.get(name, ()), (delta, float(strength)))
    return terms


def fingerprint(adapters: Iterable[Adapter], component: str | None = None) -> str:
    """A hash of a set, or of what of it acts on one component; "" where nothing does.

    Equal fingerprints on equal base weights mean equal sums.
    """
    parts = []
    for lora, unet, text_encoder in adapters:
        for part, strength in (("unet", unet), ("text_encoder", text_encoder)):
            if part in lora.components and component in (None, part) and strength is not None:
                exact = strength if isinstance(strength, BlockStrength) else float(strength)
                parts.append(f"{part}:{lora.fingerprint}:{exact!r}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""
