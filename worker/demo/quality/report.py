"""Every measure with its floor, and the table that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from worker.demo.quality.brands import brand_orders, fitted_classifier, looks_found
from worker.demo.quality.colours import colour_cases, colour_hits, paint_colours
from worker.demo.quality.looks import PLAIN
from worker.demo.quality.painter import Painter
from worker.demo.quality.seams import mask_distances, seam_orders, seam_ratio
from worker.demo.scenes.looks import LOOKS

COLOUR_FLOOR: Final = 0.90  # share of the cases
LOOK_FLOOR: Final = 0.90  # share of the cases, for each look by itself
SEAM_CEILING: Final = 0.50  # of a naive paste's seam
MASK_FLOOR: Final = 10.0  # mean ΔE*ab, four just noticeable differences, for nine pictures in ten


class Measure(NamedTuple):
    """`passed` says on which side of `limit` the value lies, for limits from below and from above."""

    name: str
    value: float
    limit: float
    from_below: bool
    cases: int

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.from_below else self.value < self.limit


def measure(painter: Painter) -> Iterator[Measure]:
    """Colour, looks, seam and mask, in this order; a minute or so on two cores."""
    cases = colour_cases()
    painted = paint_colours(painter, cases)
    hits = colour_hits(cases, painted)
    yield Measure("backdrop of the asked colour", float(np.mean(hits)), COLOUR_FLOOR, True, len(hits))

    classify = fitted_classifier(painter)
    plain = looks_found(classify, [case.order for case in cases], painted)
    yield _look("no look without a LoRA", PLAIN, plain)
    for look in LOOKS:
        orders = brand_orders(look)
        yield _look(f"look told: {look}", look, looks_found(classify, orders, painter.paint(orders, look)))

    orders = seam_orders()
    painted = painter.paint(orders)
    yield Measure("seam, of a naive paste's", seam_ratio(orders, painted), SEAM_CEILING, False, len(orders))
    distances = mask_distances(painter, orders, painted)
    tenth = float(np.percentile(distances, 10))
    yield Measure("mask inverted: ΔE of nine in ten", tenth, MASK_FLOOR, True, len(orders))


def _look(name: str, look: str, found: Sequence[str]) -> Measure:
    return Measure(name, found.count(look) / len(found), LOOK_FLOOR, True, len(found))


def table(measures: Iterable[Measure]) -> Iterator[str]:
    """Lines of Markdown, each as soon as its measure is taken."""
    yield "| measure | cases | value | asked | |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for one in measures:
        asked = f"{'≥' if one.from_below else '<'} {one.limit:.2f}"
        yield f"| {one.name} | {one.cases} | {one.value:.2f} | {asked} | {'yes' if one.passed else '**no**'} |"
