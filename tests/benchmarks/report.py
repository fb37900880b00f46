"""What a benchmark hands over: a table that is printed, a file of numbers, and no ratio of unequal work.

A ratio of speeds is written by `Gate.ratio` only, and a gate is made of two outputs of one seed: where they differ by
more than is allowed, or where the LoRA whose cost is measured changed nothing, the cell says so and holds no number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.statistic import Interval, times

# Relative, Euclidean, of final latents: what float32 is held to; and what two ways to round sixteen bits differ by.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# A LoRA is known to act on both sides where it changes the output by so many times what the two differ by: one that
# acts on one side only makes both numbers the same.
_SEEN = 3.0
_LEAST_EFFECT = 3e-4


def error(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ ÷ ‖theirs‖; infinite for unlike shapes and for what is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    found = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return found if found == found else float("inf")


@dataclass(frozen=True)
class Gate:
    """Whether two contenders did the same work. `effect`: what the LoRAs changed of the output; None without any."""

    error: float
    tolerance: float
    effect: float | None = None

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor, dtype: torch.dtype, without: Tensor | None = None) -> Gate:
        """`without`: the same output without LoRAs, from which the two have to differ."""
        ours, theirs = ours.cpu(), theirs.cpu()
        return cls(error(ours, theirs), TOLERANCE[dtype], None if without is None else error(theirs, without.cpu()))

    @property
    def open(self) -> bool:
        acts = self.effect is None or self.effect >= max(_SEEN * self.error, _LEAST_EFFECT)
        return self.error <= self.tolerance and acts

    def ratio(self, value: Interval | float, form: Callable[[float], str] = times) -> str:
        """The ratio as a cell; or the reason why there is none."""
        if not self.open:
            return f"none: {self.refusal}"
        return value.text(form) if isinstance(value, Interval) else form(value)

    @property
    def refusal(self) -> str:
        if self.error > self.tolerance:
            return f"the outputs differ by {self.error:.1e}, allowed are {self.tolerance:.0e}"
        return f"the LoRA changes the output by no more than {self.effect:.1e}, and they differ by {self.error:.1e}"

    @property
    def text(self) -> str:
        return f"{self.error:.1e}" if self.open else f"NOT EQUAL: {self.refusal}"


def worst(gates: Sequence[Gate]) -> Gate:
    """One that is open only if all are."""
    return min(gates, key=lambda gate: (gate.open, -gate.error / gate.tolerance))


@dataclass(frozen=True)
class Claim:
    """What was to be reached, and whether it was: None where it cannot be said here."""

    wanted: str
    found: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "NOT reached", None: "not judged here"}[self.reached]


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    title: str = ""

    def add(self, *cells: object) -> None:
        assert len(cells) == len(self.columns), f"{len(cells)} cells for {len(self.columns)} columns"
        self.rows.append(tuple(str(cell) for cell in cells))

    def markdown(self) -> str:
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        head = [f"{self.title}", ""] if self.title else []
        return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in lines)])


@dataclass
class Report:
    """Of one benchmark. `facts`: under which conditions; `data`: every number behind the tables."""

    name: str
    title: str
    facts: Mapping[str, Any]
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    shut: list[str] = field(default_factory=list)
    """Comparisons whose gate was shut: a program that has any ends with an error."""

    def gated(self, what: str, gate: Gate) -> Gate:
        """Note a gate's verdict."""
        if not gate.open:
            self.shut.append(f"{what}: {gate.refusal}")
        return gate

    def markdown(self) -> str:
        lines = [f"## {self.name}, {self.title}", ""]
        lines += ["; ".join(f"{key} {value}" for key, value in self.facts.items()), ""]
        for table in self.tables:
            lines += [table.markdown(), ""]
        if self.claims:
            claims = Table(("claim", "found", ""))
            for claim in self.claims:
                claims.add(claim.wanted, claim.found, claim.verdict)
            lines += [claims.markdown(), ""]
        lines += [f"- {note}" for note in self.notes] + [""] * bool(self.notes)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        tables = [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables]
        claims = [{"wanted": c.wanted, "found": c.found, "reached": c.reached} for c in self.claims]
        return {
            "name": self.name,
            "title": self.title,
            "facts": dict(self.facts),
            "tables": tables,
            "claims": claims,
            "notes": self.notes,
            "data": self.data,
            "shut": self.shut,
        }

    def write(self, out: Path | None, markdown: Path | None) -> None:
        if out is not None:
            out.write_text(json.dumps(self.to_json(), indent=2) + "\n", "utf-8")
        if markdown is not None:
            markdown.write_text(self.markdown(), "utf-8")
