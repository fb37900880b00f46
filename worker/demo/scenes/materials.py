"""Surfaces with a structure: wood, marble, fabric, tiles, slate, concrete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from worker.demo.scenes import palette
from worker.demo.scenes.fields import Rng, Shape, flat, grain, laid_over, noise, pixels, ramp, smoothstep
from worker.demo.scenes.words import word

WOODS: Final[Mapping[str, tuple[tuple[int, int, int], tuple[str, ...]]]] = {
    "beige": ((214, 178, 132), ("light oak wood", "pale pine wood", "light oak wood", "light wooden")),
    "gold": ((190, 140, 85), ("oak wood", "warm oak wood", "pine wood", "wooden")),
    "brown": ((112, 72, 45), ("dark walnut wood", "walnut wood", "brown wooden", "dark wooden", "rustic wooden")),
    "grey": ((150, 142, 132), ("grey wood", "gray wooden", "grey rustic wood")),
    "white": ((232, 226, 214), ("white painted wood", "white wooden")),
}
_DENIMS: Final = frozenset({"blue", "navy", "black", "grey"})
_DARK_MARBLES: Final = frozenset({"black", "green", "brown", "teal", "navy", "charcoal"})
_SLATES: Final = {"black": "dark", "charcoal": "dark", "grey": "grey", "navy": "dark blue"}


def wood(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Boards, each of a tone of its own, with year rings that noise has bent."""
    base, words = WOODS[name]
    colour = np.array(base, np.float32) * np.float32(rng.uniform(0.92, 1.06) / 255)
    upright = rng.random() < 0.35
    size = shape[::-1] if upright else shape
    rings = np.sin(noise(rng, size, rng.uniform(8, 15), 2, 0.5, rng.uniform(5, 9)) * rng.uniform(2.5, 5))
    light = 1 + rng.uniform(0.05, 0.1) * (0.6 * rings + 0.5 * noise(rng, size, 3, 1, aspect=10))
    board, place = _cells(pixels(size)[0], rng.uniform(18, 44), rng)
    light = light * rng.uniform(0.88, 1.08, board.max() + 1).astype(np.float32)[board]
    if rng.random() < 0.75:
        light = np.where(place < 1.1, light * rng.uniform(0.5, 0.75), light)
    light = np.ascontiguousarray(light.T) if upright else light
    return colour[:, None, None] * np.stack([light, light * light**0.12, light * light**0.3]), word(rng, *words)


def marble(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Veins run where a noise field crosses zero (Perlin 1985, "An image synthesizer")."""
    colour, words = palette.shaded(rng, name, 0.02)
    if name in _DARK_MARBLES:
        vein = np.clip(colour + np.float32(rng.uniform(0.35, 0.6)), 0, 1)
    else:
        vein = colour * np.float32(rng.uniform(0.35, 0.65))
    cloud = noise(rng, shape, 36, 3)
    field = noise(rng, shape, rng.uniform(36, 60), 3) + cloud * (ramp(shape, rng.uniform(0, math.pi)) - 0.5)
    lines = np.exp(np.abs(field) * np.float32(-1 / rng.uniform(0.06, 0.12)))
    lines = np.minimum(lines * smoothstep(noise(rng, shape, 40, 2), -0.7, 0.8), 0.85)
    return laid_over(flat(colour, shape) * (1 + 0.035 * cloud), vein, lines), f"{words} marble"


def fabric(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name)
    third = "denim" if name in _DENIMS else "cotton"
    cloth = word(rng, "linen", "linen", third, "canvas", "wool", "velvet", "silk")
    folds = noise(rng, shape, rng.uniform(30, 60), 2, 0.4, rng.uniform(0.4, 0.8))
    if cloth in ("silk", "velvet"):
        slopes = np.sin(folds * rng.uniform(1, 2) + ramp(shape, rng.uniform(0, math.pi)) * rng.uniform(3, 9))
        light = 1 + rng.uniform(0.08, 0.2) * (slopes - 0.6)
    else:
        rows, columns = pixels(shape)
        pitch = rng.uniform(1.15, 2.1)  # radians a pixel: threads three to five pixels wide
        threads = np.sin(rows * pitch + 0.6 * folds) + np.sin(columns * pitch)
        light = 1 + rng.uniform(0.04, 0.08) * threads + 0.035 * grain(rng, shape) + rng.uniform(0.02, 0.1) * folds
    return flat(colour, shape) * light, f"{words} {cloth}{word(rng, ' fabric', ' fabric', ' cloth', '')}"


def tiles(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Squares, or bricks of two squares in running bond."""
    colour, words = palette.shaded(rng, name)
    rows, columns = pixels(shape)
    height = rng.uniform(18, 40)
    row, v = _cells(rows, height, rng)
    running = rng.random() < 0.35
    width = 2 * height if running else height
    column, u = _cells(columns + _odd(row) * (width / 2) if running else columns, width, rng)
    edge = np.minimum(np.minimum(u, width - u), np.minimum(v, height - v))
    tint = rng.normal(1, 0.035, (row.max() + 1, column.max() + 1)).astype(np.float32)
    light = tint[row, column] * (1.025 - 0.05 / height * v + 0.015 * noise(rng, shape, 30, 2))
    grout = np.full(3, rng.uniform(0.55, 0.82), np.float32)
    picture = laid_over(flat(grout, shape), flat(colour, shape) * light, smoothstep(edge, 0.4, 1.6))
    return picture, f"{words} {word(rng, 'ceramic tiles', 'ceramic tiles', 'tiles', 'tiled')}"


def brick(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    base = {"red": (150, 70, 55), "brown": (130, 88, 66), "white": (212, 209, 203), "grey": (135, 132, 130)}[name]
    colour = np.array(base, np.float32) / 255
    rows, columns = pixels(shape)
    height = rng.uniform(9, 16)
    row, v = _cells(rows, height, rng)
    width = height * 2.4
    column, u = _cells(columns + _odd(row) * (width / 2), width, rng)
    edge = np.minimum(np.minimum(u, width - u), np.minimum(v, height - v))
    tint = rng.normal(1, 0.1, (row.max() + 1, column.max() + 1)).astype(np.float32)
    light = tint[row, column] * (1 + 0.06 * noise(rng, shape, 8, 3, 0.7))
    mortar = np.full(3, rng.uniform(0.6, 0.8), np.float32) * np.float32(1.08 if name == "white" else 1)
    return laid_over(flat(mortar, shape), flat(colour, shape) * light, smoothstep(edge, 0.5, 1.7)), f"{name} brick wall"


def slate(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Layers of stone: steps between the levels of a noise field, lit from one side."""
    height = noise(rng, shape, rng.uniform(20, 40), 5, 0.62, rng.uniform(1, 2.2))
    terraces = height + 0.35 * np.sin(height * rng.uniform(4, 8))
    slope = np.diff(terraces, axis=0, prepend=terraces[:1]) + np.diff(terraces, axis=1, prepend=terraces[:, :1])
    light = np.clip(1 + rng.uniform(0.25, 0.5) * slope + 0.05 * height, 0.4, 1.9)
    colour = np.clip(palette.rgb(name) * 0.9 + np.float32(0.07), 0, 1)
    stone = word(rng, "slate stone", "slate", "stone", "slate stone")
    return flat(colour, shape) * light, f"{_SLATES[name]} {stone}"


def granite(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name, 0.02)
    specks = noise(rng, shape, 2, 1) + 0.7 * grain(rng, shape)
    light = 1 + 0.11 * specks + 0.04 * noise(rng, shape, 30, 2)
    return flat(colour, shape) * light, f"{words} granite"


def concrete(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name, 0.03)
    light = 1 + rng.uniform(0.04, 0.09) * noise(rng, shape, rng.uniform(30, 70), 6, 0.6) + 0.02 * grain(rng, shape)
    pores = smoothstep(noise(rng, shape, 4, 1), 2.0, 2.6)
    return flat(colour, shape) * (
        light - 0.25 * pores
    ), f"{words} {word(rng, 'concrete', 'concrete', 'rough concrete')}"


def metal(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Brushed: streaks in one direction, and a broad reflection."""
    colour = palette.rgb(name)
    light = 0.92 + 0.07 * noise(rng, shape, 2, 1, aspect=30)
    light = light + rng.uniform(0.1, 0.25) * np.sin(
        ramp(shape, rng.uniform(0, 0.6)) * rng.uniform(3, 7) + rng.uniform(0, 6)
    )
    return flat(
        colour, shape
    ) * light, f"{name} {word(rng, 'metal', 'metal', 'steel') if name == 'silver' else 'metal'}"


def leather(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    colour, words = palette.shaded(rng, name)
    bumps = noise(rng, shape, 5, 2, 0.6)
    slope = np.diff(bumps, axis=0, prepend=bumps[:1]) + np.diff(bumps, axis=1, prepend=bumps[:, :1])
    light = 1 + 0.09 * slope + 0.06 * noise(rng, shape, 50, 2)
    return flat(colour, shape) * light, f"{words} leather"


def _odd(cell: np.ndarray) -> np.ndarray:
    return (cell % 2).astype(np.float32)


def _cells(coordinate: np.ndarray, size: float, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Cells of `size` along a coordinate, the first cut off at random: each pixel's cell, from 0, and place in it."""
    moved = coordinate + np.float32(rng.uniform(0, size))
    cell = (moved / np.float32(size)).astype(np.int32)
    return cell, moved - cell.astype(np.float32) * np.float32(size)
