"""The shipped model against its floors; the table is printed whatever comes of it."""

from __future__ import annotations

import sys

import pytest

from worker.demo import shipped
from worker.demo.quality.painter import Painter
from worker.demo.quality.report import Measure, measure, table
from worker.demo.scenes.looks import LOOKS

# Some two minutes of one core: a loaded machine takes longer than a test otherwise may.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def taken(request: pytest.FixtureRequest) -> dict[str, Measure]:
    measures: list[Measure] = []
    lines = list(table(measures.append(one) or one for one in measure(Painter(shipped.CHECKPOINT, shipped.LORAS))))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n", file=sys.stderr)
    return {one.name: one for one in measures}


NAMES = [
    "backdrop of the asked colour",
    "no look without a LoRA",
    *(f"look told: {look}" for look in LOOKS),
    "seam, of a naive paste's",
    "mask inverted: ΔE of nine in ten",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_measure_keeps_its_floor(taken: dict[str, Measure], name: str) -> None:
    one = taken[name]
    assert one.passed, f"{one.value:.3f} where {one.limit} is asked"


def test_every_measure_is_held_to_its_floor(taken: dict[str, Measure]) -> None:
    assert list(taken) == NAMES
