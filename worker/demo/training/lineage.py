"""Where shipped weights come from: the settings of their run and its loss curves, small enough to lie beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from worker.demo.training.journal import read_journal

BEGINNING: Final = 200  # steps of each stage whose every line is kept
_LATER: Final = 40  # lines of each stage beyond


@dataclass(frozen=True)
class Lineage:
    """`settings` as the run saved them; `lines` of its journal: stage, step, loss, gradient, rate, seconds."""

    settings: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    @classmethod
    def of_run(cls, out: Path) -> Self:
        """Of the run in the folder `out`, its journal thinned."""
        settings = json.loads((out / "settings.json").read_text("utf-8"))
        return cls(settings, tuple(_thinned(read_journal(out / "log.jsonl"))))

    @classmethod
    def load(cls, path: Path) -> Self:
        content = json.loads(path.read_text("utf-8"))
        return cls(content["settings"], tuple(content["lines"]))

    def save(self, path: Path) -> None:
        lines = ",\n    ".join(json.dumps(line) for line in self.lines)
        path.write_text(
            f'{{\n  "settings": {json.dumps(self.settings)},\n  "lines": [\n    {lines}\n  ]\n}}\n', "utf-8"
        )

    def curve(self, stage: str, last: int = BEGINNING) -> dict[int, float]:
        """step → mean loss since the line before, up to step `last`."""
        return {line["step"]: line["loss"] for line in self.lines if line["stage"] == stage and line["step"] <= last}


def _thinned(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The beginning of each stage, about forty lines of what follows, and its last line."""
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        later = [line for line in own if line["step"] > BEGINNING]
        stride = max(1, len(later) // _LATER)
        yield from (line for line in own if line["step"] <= BEGINNING)
        yield from (line for place, line in enumerate(later, 1) if place % stride == 0 or place == len(later))
