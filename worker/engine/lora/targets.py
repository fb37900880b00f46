"""Which modules of a UNet and a text encoder a LoRA can change, and every name a file may call them by.

A target's own name is diffusers' module path behind the component's: `unet.down_blocks.0…to_q`,
`text_encoder.text_model.encoder.layers.0…q_proj` (as in every LoRA file, whether or not the installed transformers
still has the level `text_model`). The table is plain data, so that a client without torch can judge a LoRA by it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from worker.engine.lora.formats import LEAVES, stems_of

COMPONENTS = ("unet", "text_encoder")
TABLE_VERSION = 1


@dataclass(frozen=True)
class Target:
    """`kind` is "linear" (shape [out, in]) or "conv" (shape [out, in, height, width])."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]

    @property
    def path(self) -> str:
        """The name without its component."""
        return self.name.partition(".")[2]


class TargetTable:
    """`targets` by name, and `stems`: for every spelling of every format the target it means."""

    def __init__(self, targets: Mapping[str, Target]):
        self.targets = dict(targets)
        self.stems: dict[str, str] = {}
        # LDM names count blocks, so a component's paths are named together.
        for component in COMPONENTS:
            own = [target for target in self.targets.values() if target.component == component]
            for path, stems in stems_of(component, [target.path for target in own]).items():
                for stem in stems:
                    other = self.stems.setdefault(stem, f"{component}.{path}")
                    if other != f"{component}.{path}":
                        raise RuntimeError(f"{stem} means both {other} and {component}.{path}")

    @classmethod
    def of(cls, unet: nn.Module | None, text_encoder: nn.Module | None = None) -> "TargetTable":
        """The table of these models (either may be missing); their weights are not read, so meta tensors will do."""
        return cls({name: _target(name, module) for name, module in named_targets(unet, text_encoder)})

    def to_json(self) -> dict[str, Any]:
        """Plain data: `targets` {name: {kind, shape}}, `stems` {spelling: name}, `leaves` [[regular expression, role]].

        A key of a LoRA file is a stem followed by something that one of the leaves matches in full.
        """
        return {
            "version": TABLE_VERSION,
            "targets": {t.name: {"kind": t.kind, "shape": list(t.shape)} for t in self.targets.values()},
            "stems": dict(self.stems),
            "leaves": [[pattern, role] for pattern, role in LEAVES.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TargetTable":
        """The table that `to_json` gave; its stems are made anew."""
        if data.get("version") != TABLE_VERSION:
            raise ValueError(
                f"a LoRA target table of version {data.get('version')!r}; this release reads {TABLE_VERSION}"
            )
        return cls({n: Target(n, t["kind"], tuple(t["shape"])) for n, t in data["targets"].items()})


def target_table(unet: nn.Module | None, text_encoder: nn.Module | None = None) -> dict[str, Any]:
    """What a client needs to check a LoRA for these models without torch: `TargetTable.to_json`."""
    return TargetTable.of(unet, text_encoder).to_json()


def named_targets(unet: nn.Module | None, text_encoder: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer and 2-D convolution with its target name."""
    for component, model in zip(COMPONENTS, (unet, text_encoder), strict=True):
        if model is None:
            continue
        # transformers 5 took the level `text_model` out of CLIPTextModel; the files keep it.
        level = "text_model." if component == "text_encoder" and not hasattr(model, "text_model") else ""
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                yield f"{component}.{level}{path}", module


def _target(name: str, module: nn.Module) -> Target:
    return Target(name, "linear" if isinstance(module, nn.Linear) else "conv", tuple(module.weight.shape))
