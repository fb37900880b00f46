"""A LoRA, read and matched to a model: from here on it is known to fit, and applying it cannot fail on its account."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worker.engine.errors import LoraIncompatible, LoraInvalid, LoraNoEffect
from worker.engine.lora.deltas import Delta
from worker.engine.lora.file import LoraFile, Source, read_file
from worker.engine.lora.formats import LEAVES
from worker.engine.lora.formats.assembly import assemble
from worker.engine.lora.formats.peft import read_configs
from worker.engine.lora.targets import TargetTable

# The stem is taken as short as it goes, so that the longest leaf explains the key's end.
_LEAVES = [(re.compile(f"(.+?){pattern}"), role) for pattern, role in LEAVES.items()]


@dataclass(frozen=True)
class LoraWeights:
    """`deltas` by target name (`unet.…`, `text_encoder.…`); `fingerprint` is the SHA-256 of what it was read from."""

    deltas: Mapping[str, Delta]
    fingerprint: str
    source: str = "the LoRA"

    @cached_property
    def components(self) -> frozenset[str]:
        """Which of "unet" and "text_encoder" it changes."""
        return frozenset(name.partition(".")[0] for name in self.deltas)

    def to(self, device: torch.device | str) -> "LoraWeights":
        """The same LoRA with its factors on `device`: do it ahead of a swap, away from the thread that swaps."""
        device = torch.device(device)
        return dataclasses.replace(self, deltas={name: delta.to(device) for name, delta in self.deltas.items()})


def read_lora(
    source: Source, table: TargetTable, *, weight_name: str | None = None, subfolder: str | None = None
) -> LoraWeights:
    """Read a LoRA of any supported format (path, folder, bytes or dict of tensors) for the models of `table`.

    Raises `LoraInvalid` (unreadable, or keys that nothing explains), `LoraNoEffect` (not one key matches),
    `LoraIncompatible` (made for another base), `LoraNonFinite`, `UnsafeWeightsFormat`.
    """
    return parse_lora(read_file(source, weight_name=weight_name, subfolder=subfolder), table)


def parse_lora(file: LoraFile, table: TargetTable) -> LoraWeights:
    """Pair the tensors of `file` by name and match them to the targets of `table`."""
    parts: dict[str, dict[str, Tensor]] = {}
    unread, unmatched = [], []
    for key, tensor in file.tensors.items():
        stem, role = split_key(key)
        if role is None:
            unread.append(key)
        elif stem not in table.stems:
            unmatched.append(key)
        elif parts.setdefault(table.stems[stem], {}).setdefault(role, tensor) is not tensor:
            raise LoraInvalid(f"{file.source}: {key} gives {table.stems[stem]} a second {role}; one file, one adapter")
    _refuse_leftovers(file, bool(parts), unread, unmatched)
    configs = read_configs(file.metadata, file.config)
    deltas = {}
    for name, roles in parts.items():
        target = table.targets[name]
        config = configs.get(target.component, configs.get(None))
        deltas[name] = assemble(name, target.shape, roles, config)
    return LoraWeights(deltas, file.fingerprint, file.source)


def split_key(key: str) -> tuple[str, str | None]:
    """A key's stem and the role its end names, or the key and None if no format knows such an end."""
    for pattern, role in _LEAVES:
        if match := pattern.fullmatch(key):
            return match[1], role
    return key, None


def _refuse_leftovers(file: LoraFile, matched: bool, unread: list[str], unmatched: list[str]) -> None:
    total = len(file.tensors)
    if not matched:
        raise LoraNoEffect(
            f"{file.source}: not one of its {total} keys matches this model ({_first(unmatched or unread)}); "
            + ("it was made for another base model" if unmatched else "it is no LoRA of a supported format")
        )
    if unmatched:
        raise LoraIncompatible(
            f"{file.source}: {len(unmatched)} of its {total} keys are for modules this model does not have "
            f"({_first(unmatched)}); it was made for another base model"
        )
    if unread:
        raise LoraInvalid(
            f"{file.source}: {len(unread)} of its {total} keys belong to no supported LoRA format ({_first(unread)})"
        )


def _first(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
