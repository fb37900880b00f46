"""Merged or mixed: which way to make the steps of several requests, by what each was measured to cost.

Merged, a step costs nothing extra, but all its rows have one LoRA set, and the sets take turns: every turn costs a
merge, and its batch is only as large as the set's rows. Mixed, all rows share every step, at a tax. Which is quicker
depends on the device (does a larger batch cost more?), on the ranks, and on how many steps are left to pay a merge
back; so the seconds of both are added up from a table and the smaller sum wins. Pure functions of that table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from worker.engine.errors import InvalidParameter
from worker.engine.lora.products import bucket

COSTS_VERSION = 1


@dataclass(frozen=True)
class Demand:
    """One request, as its cost sees it.

    `lora`: the name of its UNet set (a fingerprint), "" for none. `rows`: of a forward, both halves of guidance; rows
    of another size than the table's count by their share of pixels. `steps`: those left, at least 1. `rank`: the
    largest that its set has at a layer. `share`: the part of the UNet's target weights that it touches, 0…1.
    """

    lora: str
    rows: float
    steps: int
    rank: int = 0
    share: float = 0.0
    mixable: bool = True


@dataclass(frozen=True)
class Costs:
    """Measured seconds, all of one device and one latent shape.

    `step`: a plain step by the number of its rows; more rows than the largest are made in several forwards. `merge`:
    writing a set that touches every target weight, by its rank; rank 0 takes one out. `mixed`: what a mixed step takes
    longer than a plain one, as a part of it, by (rank, distinct sets), if every target weight were touched.
    """

    step: Mapping[int, float]
    merge: Mapping[int, float]
    mixed: Mapping[tuple[int, int], float]

    def __post_init__(self):
        for name in ("step", "merge", "mixed"):
            if not getattr(self, name):
                raise InvalidParameter(name, "must hold at least one measurement")

    def step_seconds(self, rows: float) -> float:
        largest = max(self.step)
        full, rest = divmod(rows, largest)
        return full * self.step[largest] + (_between(self.step, rest) if rest else 0.0)

    def merge_seconds(self, rank: int, share: float) -> float:
        """For a set of `rank` that touches `share` of the weights; rank 0: for taking it out."""
        return share * _between(self.merge, bucket(rank) if rank else 0)

    def tax(self, rank: int, sets: int, share: float) -> float:
        """The part of a plain step that mixing `sets` distinct sets adds to it."""
        counts = {count for _, count in self.mixed}
        by_sets = {n: _between({r: t for (r, m), t in self.mixed.items() if m == n}, bucket(rank)) for n in counts}
        return share * _between(by_sets, sets)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": COSTS_VERSION,
            "step": {str(rows): seconds for rows, seconds in self.step.items()},
            "merge": {str(rank): seconds for rank, seconds in self.merge.items()},
            "mixed": [[rank, sets, part] for (rank, sets), part in self.mixed.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Costs":
        """What `to_json` gave. Raises `InvalidParameter` for another version."""
        if data.get("version") != COSTS_VERSION:
            raise InvalidParameter("version", f"of the costs is {data.get('version')!r}, not {COSTS_VERSION}: measure")
        step, merge = ({int(key): value for key, value in data[name].items()} for name in ("step", "merge"))
        return cls(step, merge, {(rank, sets): part for rank, sets, part in data["mixed"]})


@dataclass(frozen=True)
class Phase:
    """Requests, by their place in the list, that step together to their ends; `lora` is in the weights meanwhile."""

    mode: Literal["merged", "mixed"]
    lora: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """What to do now is the first of `phases`. `seconds` until all are done, `mean_seconds` until one is."""

    phases: tuple[Phase, ...]
    seconds: float
    mean_seconds: float


def choose(demands: Sequence[Demand], costs: Costs, merged: Demand | str = "") -> Choice:
    """The order of work that ends first; among equals the one whose requests end earlier on average.

    `merged`: the set that the weights hold now, "" for none; as a Demand, if none of `demands` has it. Ask again
    whenever a request comes or goes.
    """
    if not demands:
        raise InvalidParameter("demands", "must hold at least one request")
    known = {demand.lora: demand for demand in demands}
    now = merged if isinstance(merged, Demand) else known.get(merged, Demand(merged, 0, 0))
    everyone = range(len(demands))
    options = [_turns(demands, everyone)]
    together = [i for i in everyone if demands[i].mixable]
    if any(demands[i].lora not in ("", now.lora) for i in together):
        rest = [i for i in everyone if i not in together]
        options.append([Phase("mixed", "", tuple(together)), *_turns(demands, rest)])
    choices = [_timed(_ordered(phases, demands, costs, now.lora), demands, costs, now) for phases in options]
    return min(choices, key=lambda choice: (choice.seconds, choice.mean_seconds))


def _turns(demands: Sequence[Demand], members: Iterable[int]) -> list[Phase]:
    """A merged phase for each set."""
    groups: dict[str, list[int]] = {}
    for i in members:
        groups.setdefault(demands[i].lora, []).append(i)
    return [Phase("merged", lora, tuple(group)) for lora, group in groups.items()]


def _ordered(phases: Sequence[Phase], demands: Sequence[Demand], costs: Costs, now: str) -> list[Phase]:
    """What needs no merge first, then the shortest: so the mean wait is least (Smith 1956)."""
    length = {phase: _ends(phase, demands, costs)[-1][1] for phase in phases}
    return sorted(phases, key=lambda phase: (phase.lora != now, length[phase] / len(phase.members)))


def _timed(phases: Sequence[Phase], demands: Sequence[Demand], costs: Costs, now: Demand) -> Choice:
    clock, ends = 0.0, []
    for phase in phases:
        after = demands[phase.members[0]] if phase.lora else Demand("", 0, 0)
        if after.lora != now.lora:
            # what both touch is written once; the smaller set's weights are taken to be among the larger's
            clock += costs.merge_seconds(after.rank, after.share)
            clock += costs.merge_seconds(0, max(0.0, now.share - after.share))
        now = after
        found = [clock + end for _, end in _ends(phase, demands, costs)]
        ends += found
        clock = found[-1]
    return Choice(tuple(phases), clock, sum(ends) / len(ends))


def _ends(phase: Phase, demands: Sequence[Demand], costs: Costs) -> list[tuple[int, float]]:
    """(member, seconds from the phase's begin to its end), the first to end first: the batch shrinks as they end."""
    left = sorted(phase.members, key=lambda i: demands[i].steps)
    ends, clock, done = [], 0.0, 0
    for position, i in enumerate(left):
        clock += (demands[i].steps - done) * _step([demands[j] for j in left[position:]], costs, phase.mode)
        done = demands[i].steps
        ends.append((i, clock))
    return ends


def _step(active: Sequence[Demand], costs: Costs, mode: str) -> float:
    rows = sum(demand.rows for demand in active)
    sets = {demand.lora: demand for demand in active if demand.lora}
    if mode == "merged" or not sets:
        return costs.step_seconds(rows)
    rank, share = (max(getattr(demand, name) for demand in sets.values()) for name in ("rank", "share"))
    return costs.step_seconds(rows) * (1 + costs.tax(rank, len(sets), share))


def _between(points: Mapping[int, float], at: float) -> float:
    """Linear between measurements, constant below the first, proportional above the last."""
    known = sorted(points)
    if at <= known[0]:
        return points[known[0]]
    for low, high in pairwise(known):
        if at <= high:
            return points[low] + (points[high] - points[low]) * (at - low) / (high - low)
    return points[known[-1]] * at / max(known[-1], 1)
