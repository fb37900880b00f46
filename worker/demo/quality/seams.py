"""Does what was painted fit what it meets: the step of colour along the mask's edge, and what another mask changes."""

from __future__ import annotations

from typing import Final

import numpy as np

from worker.demo.quality.painter import SEED, Order, Painter, pasted
from worker.demo.scenes import make_scene
from worker.demo.scenes.palette import to_lab
from worker.demo.training.data import series

CASES: Final = 40
_FIRST: Final = 1000  # number of the first scene, far from those of the other measures


def seam_orders(count: int = CASES, shape: tuple[int, int] = (128, 128)) -> list[Order]:
    """Holes to fill whose edge runs through the backdrop, not along a product where there is a step by nature.

    The words are the scene's own caption: the hole is to be filled with what belongs there.
    """
    orders = []
    for number in range(count):
        kind = ("boxes", "strokes")[number % 2]
        scene = make_scene(series(SEED, "quality"), _FIRST + number, shape, mask=kind)
        orders.append(Order(scene, scene.caption, seed=number))
    return orders


def seam(picture: np.ndarray, mask: np.ndarray) -> float:
    """Mean distance in L*a*b* (ΔE*ab) between neighbours of which one was kept and one repainted.

    `picture` [3, h, w] in 0…1, `mask` [h, w] of 0 and 1; 0 where the mask has no edge.
    """
    lab, total, count = to_lab(picture.astype(np.float64)), 0.0, 0
    for axis in (0, 1):
        edge = np.diff(mask.astype(np.int8), axis=axis) != 0
        step = np.sqrt((np.diff(lab, axis=axis + 1) ** 2).sum(axis=0))
        total, count = total + float(step[edge].sum()), count + int(edge.sum())
    return total / max(count, 1)


def seam_ratio(orders: list[Order], painted: np.ndarray) -> float:
    """Mean seam of the edits over that of a naive paste: the same hole filled with the next order's picture."""
    strangers = np.roll(painted, 1, axis=0)
    made, naive = (
        np.mean([seam(pasted(order, fill), order.scene.mask) for order, fill in zip(orders, fills, strict=True)])
        for fills in (painted, strangers)
    )
    return float(made / naive)


def inverted(order: Order) -> Order:
    """The same order for what it would have kept."""
    return order._replace(scene=order.scene._replace(mask=1 - order.scene.mask))


def mask_distances(painter: Painter, orders: list[Order], painted: np.ndarray) -> list[float]:
    """How far each edit is from the one with the mask inverted: mean ΔE*ab over the picture.

    A just noticeable difference is about 2.3 (Mahy, Van Eycken and Oosterlinck 1994).
    """
    others = [inverted(order) for order in orders]
    distances = []
    for order, fill, other, other_fill in zip(orders, painted, others, painter.paint(others), strict=True):
        first, second = (to_lab(pasted(*edit).astype(np.float64)) for edit in ((order, fill), (other, other_fill)))
        distances.append(float(np.sqrt(((first - second) ** 2).sum(axis=0)).mean()))
    return distances
