"""How strongly an adapter acts: one number, or diffusers' dict with a number for each transformer of the UNet."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.errors import InvalidParameter
from worker.engine.lora.targets import TargetTable

_ATTENTION = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\..+")
_MID = "mid_block.attentions.0"


@dataclass(frozen=True)
class BlockStrength:
    """A strength for each of `layers` ("down_blocks.1.attentions.0") and one for the `rest` of the UNet."""

    layers: tuple[tuple[str, float], ...]
    rest: float = 1.0

    def at(self, path: str) -> float:
        """The strength for the module at `path`: as in diffusers, resnets and samplers go with the attention beside."""
        parts = path.split(".")
        if path.startswith(f"{_MID}."):
            layer = _MID
        elif len(parts) > 3:
            layer = f"{parts[0]}.{parts[1]}.attentions.{parts[3]}"
        else:
            layer = ""
        return dict(self.layers).get(layer, self.rest)

    def __mul__(self, scale: float) -> "BlockStrength":
        return BlockStrength(tuple((layer, value * scale) for layer, value in self.layers), self.rest * scale)


Strength = float | BlockStrength


def strengths(weight: Any, table: TargetTable) -> dict[str, Strength]:
    """One adapter's weight as `set_adapters` takes it, by component; what it does not mention is 1.

    `weight`: None, a number, or {"unet": …, "text_encoder": number}, where the UNet's may again be a dict
    {"down": …, "mid": …, "up": …} of numbers or of {"block_1": number or [one a layer]}. Raises `InvalidParameter`.
    """
    if not isinstance(weight, Mapping):
        return {"unet": _number(weight), "text_encoder": _number(weight)}
    unknown = weight.keys() - {"unet", "text_encoder"}
    if unknown:
        raise _invalid(f"has {', '.join(map(repr, sorted(unknown)))}; a dict may have 'unet' and 'text_encoder'")
    unet = weight.get("unet")
    return {
        "unet": _blocks(unet, table) if isinstance(unet, Mapping) else _number(unet),
        "text_encoder": _number(weight.get("text_encoder")),
    }


def _blocks(scales: Mapping[str, Any], table: TargetTable) -> BlockStrength:
    layers: dict[str, dict[str, int]] = {"down": {}, "up": {}}
    for target in table.targets.values():
        if target.component == "unet" and (match := _ATTENTION.fullmatch(target.path)):
            side, block, layer = match[1], f"block_{match[2]}", int(match[3])
            layers[side][block] = max(layers[side].get(block, 0), layer + 1)
    found: dict[str, float] = {}
    for part, value in scales.items():
        if part == "mid":
            found[_MID] = _each(value, 1, "mid")[0]
        elif part in layers:
            blocks = value if isinstance(value, Mapping) else dict.fromkeys(layers[part], value)
            for block, numbers in blocks.items():
                if block not in layers[part]:
                    raise _invalid(f"has {part}.{block!r}; with attention there are {', '.join(layers[part])}")
                for layer, number in enumerate(_each(numbers, layers[part][block], f"{part}.{block}")):
                    found[f"{part}_blocks.{block.removeprefix('block_')}.attentions.{layer}"] = number
        else:
            raise _invalid(f"has the part {part!r} for the UNet; there are 'down', 'mid' and 'up'")
    return BlockStrength(tuple(sorted(found.items())))


def _each(value: Any, count: int, where: str) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, count):
        raise _invalid(f"has {len(values)} numbers for {where}; it has {count} layers")
    return [_number(v) for v in (values * count if len(values) == 1 else values)]


def _number(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"must hold numbers, and has {value!r}")
    return float(value)


def _invalid(rule: str) -> InvalidParameter:
    return InvalidParameter("adapter_weights", rule)
