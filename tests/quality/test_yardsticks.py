"""The yardsticks of the demo model's quality: they measure what they say, on pictures that training never saw."""

from __future__ import annotations

import numpy as np
import pytest

from worker.demo.quality.colours import CASES, ColourCase, colour_cases, colour_hits
from worker.demo.quality.painter import Order
from worker.demo.quality.report import Measure, table
from worker.demo.quality.seams import inverted, seam, seam_orders, seam_ratio
from worker.demo.scenes import Scene, make_scene
from worker.demo.scenes.palette import MAIN, rgb
from worker.demo.training.data import series


def test_a_backdrop_is_of_the_colour_that_its_mean_is_nearest_to() -> None:
    assert CASES == 100
    for asked, other in zip(MAIN, [*MAIN][1:] + [*MAIN][:1], strict=True):
        order = _halves(0.5, 0.5)
        painted = np.zeros((3, 16, 16), np.float32)
        painted[:, :, 8:] = rgb(asked)[:, None, None]  # where the mask is; the kept half is black
        cases = [ColourCase(asked, order), ColourCase(other, order)]
        assert colour_hits(cases, np.stack([painted, painted])) == [True, False]


def test_a_value_on_the_wrong_side_of_its_limit_fails_and_the_table_says_so() -> None:
    below, above = Measure("a", 0.89, 0.9, True, 100), Measure("b", 0.5, 0.5, False, 40)
    assert not below.passed and not above.passed
    assert below._replace(value=0.9).passed and above._replace(value=0.49).passed
    rows = list(table([below, above._replace(value=0.3)]))
    assert rows[2] == "| a | 100 | 0.89 | ≥ 0.90 | **no** |" and rows[3] == "| b | 40 | 0.30 | < 0.50 | yes |"


def test_an_inverted_order_repaints_what_was_kept() -> None:
    order = _halves(0, 1)
    assert np.array_equal(inverted(order).scene.mask + order.scene.mask, np.ones((16, 16), np.uint8))


def test_what_is_measured_was_never_trained_on() -> None:
    numbers = {series(0, purpose) for purpose in ("autoencoder", "denoiser", "looks")}
    assert series(0, "quality") not in numbers
    cases = colour_cases(36)
    asked = [(case.asked, case.order.prompt.replace(case.asked, "…")) for case in cases]
    assert len(set(asked)) == 36  # every colour in every phrase
    assert not np.array_equal(cases[0].order.scene.picture, make_scene(series(0, "denoiser"), 0).picture)


def _halves(left: float, right: float) -> Order:
    """A picture grey `left` of its middle and `right` of it, where it is to be repainted."""
    picture = np.full((3, 16, 16), round(255 * left), np.uint8)
    picture[:, :, 8:] = round(255 * right)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 1
    return Order(Scene(picture, mask, ""), "", 0)


def test_a_seam_is_the_step_of_colour_at_the_masks_edge_and_only_there() -> None:
    white, black = np.ones((3, 16, 16), np.float32), np.zeros((3, 16, 16), np.float32)
    mask = _halves(0, 1).scene.mask
    assert seam(white, mask) == 0
    assert seam(np.where(mask > 0, white, black), mask) == pytest.approx(100, abs=0.01)  # L* of white
    stripes = np.broadcast_to(np.arange(16) % 4 < 2, (3, 16, 16)).astype(np.float32)
    assert seam(stripes, mask) == pytest.approx(100, abs=0.01)
    assert seam(stripes, np.roll(mask, 1, axis=1)) == 0  # now both edges lie inside a stripe


def test_a_fill_that_fits_has_no_seam_and_a_careless_one_a_strangers() -> None:
    orders = [_halves(0.2, 0.2), _halves(0.9, 0.9)]
    fitting = np.stack([np.full((3, 16, 16), round(255 * grey) / 255, np.float32) for grey in (0.2, 0.9)])
    assert seam_ratio(orders, fitting) < 1e-6
    careless = np.full((2, 3, 16, 16), 0.5, np.float32)  # the same for both is as bad as a stranger's
    assert seam_ratio(orders, careless) == pytest.approx(1.0)
    edges = [np.abs(np.diff(order.scene.mask.astype(int), axis=1)).sum() for order in seam_orders(6, (64, 64))]
    assert all(edge > 0 for edge in edges)
