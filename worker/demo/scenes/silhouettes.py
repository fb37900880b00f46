"""What stands in the picture, as outlines: bottles, cups, boxes, shoes, wheels, figures, and shapes without a name.

Coordinates are x to the right and y downwards; everything stands on y = 1 and is about two units high, so that its
middle is the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

Rng = np.random.Generator
Points = np.ndarray  # [n, 2] (x, y), corners of a polygon


class Part(NamedTuple):
    """`tone` 0 cuts a hole; else it multiplies the light. A `label` has a colour of its own."""

    points: Points
    tone: float = 1.0
    label: bool = False


class Silhouette(NamedTuple):
    """`turned`: a body of revolution about the vertical, lit as one."""

    name: str
    parts: tuple[Part, ...]
    turned: bool = False


# Half the width at heights from the top (0) to the bottom (1), in units of the height.
_PROFILES: Final[Mapping[str, tuple[tuple[float, float], ...]]] = {
    "bottle": ((0, 0.07), (0.04, 0.08), (0.28, 0.075), (0.42, 0.2), (0.5, 0.22), (0.97, 0.21), (1, 0.19)),
    "jar": ((0, 0.24), (0.12, 0.25), (0.14, 0.22), (0.22, 0.3), (0.5, 0.32), (0.95, 0.3), (1, 0.26)),
    "vase": ((0, 0.16), (0.06, 0.12), (0.3, 0.11), (0.6, 0.3), (0.78, 0.31), (0.95, 0.18), (1, 0.17)),
    "cup": ((0, 0.42), (0.3, 0.41), (0.7, 0.36), (0.9, 0.28), (1, 0.24)),
    "bowl": ((0, 0.85), (0.3, 0.8), (0.7, 0.55), (0.9, 0.32), (1, 0.3)),
    "lamp": ((0, 0.16), (0.45, 0.38), (0.46, 0.03), (0.9, 0.03), (0.92, 0.2), (1, 0.22)),
    "can": ((0, 0.25), (0.03, 0.28), (0.97, 0.28), (1, 0.25)),
    "tube": ((0, 0.09), (0.12, 0.09), (0.13, 0.2), (0.9, 0.23), (1, 0.23)),
    "rocket": ((0, 0.005), (0.1, 0.06), (0.25, 0.1), (0.75, 0.1), (0.9, 0.13), (1, 0.17)),
}


def _turned(name: str) -> Callable[[Rng], Silhouette]:
    def make(rng: Rng) -> Silhouette:
        heights, widths = np.array(_PROFILES[name]).T
        widths = widths * rng.uniform(0.85, 1.15, len(widths)) * rng.uniform(0.85, 1.2)
        t = np.linspace(0, 1, 40)
        half = 2 * np.interp(t, heights, widths)
        right = np.stack([half, 2 * t - 1], axis=1)
        parts = [Part(np.concatenate([right, right[::-1] * (-1, 1)]))]
        if name == "cup" and rng.random() < 0.8:
            middle, side = (half[12], rng.uniform(-0.35, -0.05)), rng.uniform(0.3, 0.45)
            parts = [
                Part(ellipse(*middle, side, side * 1.1)),
                Part(ellipse(*middle, side * 0.6, side * 0.7), 0),
                *parts,
            ]
        if name in ("bottle", "jar", "can", "tube") and rng.random() < 0.6:
            top, bottom, width = rng.uniform(0.0, 0.3), rng.uniform(0.5, 0.85), half[28] * 0.98
            parts.append(Part(rectangle(-width, top, width, bottom), 1.0, label=True))
        return Silhouette(name, tuple(parts), turned=True)

    return make


def _box(rng: Rng) -> Silhouette:
    width, height, depth = rng.uniform(0.45, 1.0), rng.uniform(0.5, 1.4), rng.uniform(0.15, 0.45)
    side = rng.choice([-1.0, 1.0])
    top, shift = 1 - height, np.array([side * depth, -depth * rng.uniform(0.4, 0.8)])
    front = rectangle(-width, top, width, 1)
    edge = np.array([(side * width, top), (side * width, 1.0)])
    lid = np.array([(-width, top), (width, top)])
    parts = [
        Part(front, rng.uniform(0.85, 1.0)),
        Part(np.concatenate([edge, edge[::-1] + shift]), rng.uniform(0.5, 0.8)),
        Part(np.concatenate([lid, lid[::-1] + shift]), rng.uniform(1.0, 1.2)),
    ]
    if rng.random() < 0.5:
        parts.append(Part(front * rng.uniform(0.4, 0.8, 2) + (0, 0.3 * (top + 1)), label=True))
    return Silhouette("box", tuple(parts))


_SHOE: Final = np.array(
    [(-0.95, -0.45), (-0.5, -0.5), (-0.3, -0.2), (0.1, 0.15), (0.7, 0.4), (1.15, 0.6), (1.25, 0.85), (1.15, 1.0),
     (0.0, 0.97), (-0.9, 1.0), (-1.0, 0.7), (-0.9, 0.2)]
)  # fmt: skip


def _shoe(rng: Rng) -> Silhouette:
    outline = smooth(_SHOE + rng.normal(0, 0.05, _SHOE.shape))
    sole = np.array([(-1.0, 0.8), (1.25, 0.8), (1.2, 1.0), (-0.95, 1.0)])
    parts = [Part(outline), Part(sole, rng.uniform(0.8, 1.3), label=True)]
    if rng.random() < 0.4:
        parts.append(Part(rectangle(-0.95, 0.9, -0.5, 1.4)))
    side = rng.choice([-1.0, 1.0])
    return Silhouette("shoe", tuple(part._replace(points=part.points * (side, 1)) for part in parts))


def _bag(rng: Rng) -> Silhouette:
    width, top = rng.uniform(0.6, 0.95), rng.uniform(-0.3, 0.1)
    body = smooth(
        np.array([(-width * 0.85, top), (width * 0.85, top), (width, 0.9), (0.6, 1), (-0.6, 1), (-width, 0.9)])
    )
    loop, lift = rng.uniform(0.35, 0.5), rng.uniform(0.4, 0.8)
    handle = (Part(ellipse(0, top, loop, lift)), Part(ellipse(0, top, loop * 0.8, lift * 0.85), 0))
    return Silhouette("bag", (*handle, Part(body), Part(rectangle(-0.15, top + 0.2, 0.15, top + 0.4), 1.2, label=True)))


def _watch(rng: Rng) -> Silhouette:
    strap, face = rng.uniform(0.2, 0.34), rng.uniform(0.45, 0.62)
    parts = (
        Part(rectangle(-strap, -1, strap, 1), 0.8),
        Part(ellipse(0, 0, face, face), 1.1),
        Part(ellipse(0, 0, face * 0.82, face * 0.82), 1, label=True),
    )
    return Silhouette("watch", parts)


def _ring(rng: Rng) -> Silhouette:
    height, thick = rng.uniform(0.5, 1.0), rng.uniform(0.6, 0.85)
    stone = Part(ellipse(0, 1 - 2 * height, 0.25, 0.22), 1.2, label=True)
    return Silhouette(
        "ring", (Part(ellipse(0, 1 - height, 1, height)), Part(ellipse(0, 1 - height, thick, height * thick), 0), stone)
    )


def _ball(rng: Rng) -> Silhouette:
    return Silhouette("ball", (Part(ellipse(0, 0, 1, 1)),), turned=True)


def _slab(rng: Rng) -> Silhouette:
    """A phone, a book: a rectangle that is turned a little, with another in it."""
    name, turn = ("phone", "book")[rng.integers(2)], rng.normal(0, 0.2)
    half = np.array([rng.uniform(0.45, 0.55) if name == "phone" else rng.uniform(0.6, 0.8), 1.0])
    screen = half * (0.9 if name == "phone" else rng.uniform(0.3, 0.8))
    parts = (
        Part(rotated(rectangle(*-half, *half), turn)),
        Part(rotated(rectangle(*-screen, *screen), turn), label=True),
    )
    return Silhouette(name, parts)


def _coins(rng: Rng) -> Silhouette:
    parts: list[Part] = []
    for _ in range(rng.integers(3, 9)):
        x, y, radius = rng.uniform(-1.5, 1.5), rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.38)
        parts += [Part(ellipse(x, y, radius, radius), rng.uniform(0.8, 1.1))]
        parts += [Part(ellipse(x, y, radius * 0.8, radius * 0.8), rng.uniform(0.7, 1.2))]
    return Silhouette("coins", tuple(parts))


def _wheels(rng: Rng) -> Silhouette:
    """A motorcycle, more or less: two wheels, tubes between them, a tank, a seat."""
    radius, reach = rng.uniform(0.42, 0.55), rng.uniform(0.85, 1.1)
    parts: list[Part] = []
    for x in (-reach, reach):
        hub = (x, 1 - radius)
        parts += [Part(ellipse(*hub, radius, radius), 0.5), Part(ellipse(*hub, radius * 0.75, radius * 0.75), 0)]
        parts += [Part(ellipse(*hub, radius * 0.2, radius * 0.2), 1.2)]
        turn = rng.uniform(0, 3.1)
        spokes = turn + np.arange(6) * np.pi / 3
        rim = np.stack([hub[0] + radius * np.cos(spokes), hub[1] + radius * np.sin(spokes)], axis=1)
        parts += [Part(bar(hub, tuple(end), 0.04), 0.9) for end in rim]
    joints = [
        (-reach, 1 - radius),
        (-0.3, 0.35),
        (0.35, 0.4),
        (reach, 1 - radius),
        (0.6, -0.45),
        (-0.35, -0.2),
        (-0.3, 0.35),
    ]
    parts += [Part(bar(a, b, rng.uniform(0.05, 0.1)), rng.uniform(0.6, 1.1)) for a, b in pairwise(joints)]
    parts += [Part(ellipse(0.12, -0.25, 0.42, 0.22)), Part(ellipse(-0.5, -0.25, 0.4, 0.12), 0.4)]
    parts += [Part(rectangle(-0.35, 0.1, 0.4, 0.6), 0.6), Part(bar((0.6, -0.45), (0.35, -0.75), 0.07), 0.8)]
    side = rng.choice([-1.0, 1.0])
    return Silhouette("motorcycle", tuple(part._replace(points=part.points * (side, 1)) for part in parts))


def _figure(rng: Rng) -> Silhouette:
    """A head on a body, with limbs or without: a person, a toy, a cat that sits."""
    name = ("person", "toy", "cat")[rng.integers(3)]
    head, width = rng.uniform(0.22, 0.42), rng.uniform(0.4, 0.75)
    neck = -1 + 2 * head
    left, right = rng.uniform(0.7, 1.2, 2)
    corners = [(-0.3, neck - 0.1), (0.3, neck - 0.1), (1, neck + 0.5), (right, 1), (-left, 1), (-1, neck + 0.5)]
    body = smooth(np.array(corners) * (width, 1))
    parts = [
        Part(body),
        Part(ellipse(rng.normal(0, 0.08), neck - head, head * rng.uniform(0.8, 1.2), head), rng.uniform(0.8, 1.2)),
    ]
    if name == "cat":
        for side in (-1, 1):
            ear = np.array([(0.15, -0.6), (0.95, -0.55), (0.75, -1.5)]) * head * (side, 1)
            parts.append(Part(np.add(ear, (0, neck - head))))
    else:
        for side in (-1, 1):
            hand = (side * rng.uniform(0.5, 1.1), rng.uniform(-0.4, 0.6))
            parts.append(
                Part(bar((side * width * 0.8, neck + 0.3), hand, rng.uniform(0.1, 0.18)), rng.uniform(0.7, 1.1))
            )
    return Silhouette(name, tuple(parts))


def _blob(rng: Rng) -> Silhouette:
    """No thing in particular: a circle whose radius waves, smoothly or in spikes."""
    turns = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.full(72, 1.0)
    for wave in range(2, rng.integers(4, 9)):
        radius += rng.normal(0, 0.5 / wave) * np.cos(wave * turns + rng.uniform(0, 6.28))
    outline = (
        np.stack([np.cos(turns) * rng.uniform(0.7, 1.3), np.sin(turns)], axis=1) * np.clip(radius, 0.25, 1.8)[:, None]
    )
    parts = [Part(outline)]
    if rng.random() < 0.25:
        parts.append(Part(ellipse(*rng.uniform(-0.3, 0.3, 2), *rng.uniform(0.15, 0.35, 2)), 0))
    return Silhouette("product", tuple(parts), turned=bool(rng.random() < 0.2))


_MAKERS: Final[Mapping[str, tuple[float, Callable[[Rng], Silhouette]]]] = {
    **{name: (0.045, _turned(name)) for name in _PROFILES},
    "bottle": (0.09, _turned("bottle")),
    "cup": (0.08, _turned("cup")),
    "box": (0.08, _box),
    "shoe": (0.06, _shoe),
    "bag": (0.04, _bag),
    "watch": (0.03, _watch),
    "ring": (0.02, _ring),
    "ball": (0.03, _ball),
    "slab": (0.04, _slab),
    "coins": (0.03, _coins),
    "wheels": (0.04, _wheels),
    "figure": (0.09, _figure),
    "blob": (0.14, _blob),
}
_UP_TO: Final = np.cumsum([weight for weight, _ in _MAKERS.values()])


def draw(rng: Rng) -> Silhouette:
    place = int(np.searchsorted(_UP_TO, rng.random() * _UP_TO[-1]))
    return list(_MAKERS.values())[place][1](rng)


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


_TURNS: Final = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE: Final = np.stack([np.cos(_TURNS), np.sin(_TURNS)], axis=1)


def ellipse(x: float, y: float, x_radius: float, y_radius: float) -> Points:
    return _CIRCLE * (x_radius, y_radius) + (x, y)


def bar(start: tuple[float, float], end: tuple[float, float], thickness: float) -> Points:
    """A straight tube."""
    along = np.subtract(end, start)
    across = np.array([-along[1], along[0]]) * (0.5 * thickness / max(float(np.hypot(*along)), 1e-6))
    return np.array([start + across, end + across, end - across, start - across])


def rotated(points: Points, turn: float) -> Points:
    cos, sin = np.cos(turn), np.sin(turn)
    return points @ np.array([(cos, sin), (-sin, cos)])


def smooth(points: Points) -> Points:
    """A closed curve through the corners of a polygon (Catmull and Rom 1974)."""
    before, after, beyond = (np.roll(points, shift, axis=0)[:, None] for shift in (1, -1, -2))
    t, here = np.linspace(0, 1, 6, endpoint=False)[None, :, None], points[:, None]
    curve = 2 * here + (after - before) * t + (2 * before - 5 * here + 4 * after - beyond) * t**2
    return (0.5 * (curve + (3 * here - before - 3 * after + beyond) * t**3)).reshape(-1, 2)
