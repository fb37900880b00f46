"""A product: a silhouette, placed, filled with a material or with what a photograph might show, and lit."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from worker.demo.scenes import palette, silhouettes
from worker.demo.scenes.fields import (
    Rng,
    Shape,
    between,
    blurred,
    flat,
    grain,
    laid_over,
    noise,
    pixels,
    ramp,
    smoothstep,
)
from worker.demo.scenes.words import word


class Product(NamedTuple):
    """`picture` [3, h, w] and `alpha` [h, w] in 0…1; `base` is the row it stands on, in pixels from the top.

    `name` is what it is ("bottle"), `fill` what it looks like ("glossy blue", or nothing that has a word).
    """

    picture: np.ndarray
    alpha: np.ndarray
    base: float
    name: str
    fill: str


def product(rng: Rng, shape: Shape, light: float) -> Product:
    """A product anywhere near the middle. `light` −1…1: how far from the left the light comes (1: from the right)."""
    silhouette = silhouettes.draw(rng)
    parts, base = _placed(rng, shape, silhouette)
    alpha, tone, label = _drawn(shape, parts)
    picture, fill, gloss = _filled(rng, shape)
    if label is not None:
        picture = laid_over(picture, palette.any_colour(rng), label)
    shade = _turned_shade(alpha, light, gloss) if silhouette.turned else _relief(rng, alpha, light)
    picture = picture * (tone * shade)
    if gloss > 0.3 and silhouette.turned:
        picture = picture + gloss * _highlight(alpha, light)
    if rng.random() < 0.12:
        picture, alpha = _with_rim(rng, picture, alpha)
    return Product(picture, alpha, base, silhouette.name, fill)


def _with_rim(rng: Rng, picture: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The product with some of the backdrop it stood before when it was photographed: cut out carelessly."""
    wide = smoothstep(blurred(alpha, rng.uniform(1.5, 4)), 0.15, 0.3)
    return laid_over(flat(palette.any_colour(rng), alpha.shape), picture, alpha), np.maximum(wide, alpha)


def _placed(rng: Rng, shape: Shape, silhouette: silhouettes.Silhouette) -> tuple[list[silhouettes.Part], float]:
    height, width = shape
    scale = rng.uniform(0.2, 0.46) * min(shape) * (1 if rng.random() < 0.85 else 1.5)
    base = rng.uniform(0.62, 0.97) * height
    centre = np.array([width * rng.normal(0.5, 0.12), base - scale])
    turn = 0.0 if silhouette.turned or rng.random() < 0.5 else rng.normal(0, 0.25)
    if rng.random() < 0.06:
        turn = rng.uniform(0, 6.28)
    placed = [
        part._replace(points=silhouettes.rotated(part.points, turn) * scale + centre) for part in silhouette.parts
    ]
    return placed, base


_FINER = 2


def _drawn(shape: Shape, parts: list[silhouettes.Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What the parts cover, their tone, and where a label is, None without one; twice as fine and then averaged."""
    size = (shape[1] * _FINER, shape[0] * _FINER)
    alpha, tone = Image.new("L", size, 0), Image.new("L", shape[::-1], 128)
    label = Image.new("L", size, 0) if any(part.label for part in parts) else None
    cover, level = ImageDraw.Draw(alpha), ImageDraw.Draw(tone)
    mark = ImageDraw.Draw(label) if label else None
    for points, light, is_label in parts:
        corners = (points * _FINER).ravel().tolist()
        cover.polygon(corners, 255 if light else 0)
        if light:
            level.polygon(points.ravel().tolist(), int(128 * light))
        if mark:
            mark.polygon(corners, 255 if is_label else 0)
    return _unit(alpha), np.asarray(tone, np.float32) * np.float32(1 / 128), _unit(label) if label else None


def _unit(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_FINER), np.float32) * np.float32(1 / 255)


def _turned_shade(alpha: np.ndarray, light: float, gloss: float) -> np.ndarray:
    """Lambert's law on a body of revolution: across each row the normal turns from left to right."""
    across = _across(alpha)
    facing = np.sqrt(np.maximum(1 - across * across, 0))
    return 0.45 + 0.4 * facing + np.float32(0.4 * light) * across + np.float32(0.1 * gloss)


def _across(alpha: np.ndarray) -> np.ndarray:
    """−1 at the left edge of what is covered in a row, 1 at the right edge."""
    covered = alpha > 0.5
    left = covered.argmax(axis=1)
    right = alpha.shape[1] - 1 - covered[:, ::-1].argmax(axis=1)
    middle, half = (left + right) * np.float32(0.5), np.maximum((right - left) * np.float32(0.5), 1)
    columns = pixels(alpha.shape)[1]
    return np.clip((columns - middle[:, None].astype(np.float32)) / half[:, None].astype(np.float32), -1, 1)


def _highlight(alpha: np.ndarray, light: float) -> np.ndarray:
    """The window of the studio, seen in the side that faces it."""
    place = (_across(alpha) - np.float32(0.55 * light)) * np.float32(1 / 0.12)
    return np.float32(0.6) * np.exp(-place * place) * alpha


def _relief(rng: Rng, alpha: np.ndarray, light: float) -> np.ndarray:
    """As if the outline were that of a cushion: brighter where its slope faces the light, darker at its foot."""
    cushion = blurred(alpha, rng.uniform(2.5, 7) * min(alpha.shape) / 128)
    slope_x = np.zeros_like(cushion)
    slope_y = np.zeros_like(cushion)
    slope_x[:, 1:-1], slope_y[1:-1] = cushion[:, 2:] - cushion[:, :-2], cushion[2:] - cushion[:-2]
    return np.clip(
        0.95 + (slope_y * 1.2 - slope_x * np.float32(2.2 * light)) * np.float32(rng.uniform(0.5, 1.6)), 0.25, 1.7
    )


_FINISHES: Final[tuple[tuple[str, float], ...]] = (
    ("glossy", 0.9),
    ("matte", 0.0),
    ("shiny", 0.8),
    ("smooth", 0.3),
    ("polished", 0.9),
    ("", 0.3),
)
_STUFFS: Final = (
    *("paint", "paint", "paint", "plastic", "ceramic", "leather", "metal", "glass", "fabric", "foam", "tea"),
    *("chocolate", "eyes", "nose", "visor", "mirrored visor", "patch", "embroidered patch"),
)


def _filled(rng: Rng, shape: Shape) -> tuple[np.ndarray, str, float]:
    """What covers the product, the words for it (none for a photograph), and how glossy it is 0…1."""
    if rng.random() < 0.5:
        return photograph(rng, shape), "", float(rng.random() < 0.3) * 0.6
    colour, words = palette.shaded(rng, palette.pick(rng))
    finish, gloss = _FINISHES[rng.integers(len(_FINISHES))]
    picture = flat(colour, shape)
    how = rng.random()
    if how < 0.35:
        picture = picture * (1 + rng.uniform(0.02, 0.15) * noise(rng, shape, rng.uniform(4, 40), 3, 0.6))
    elif how < 0.45:
        other, second = palette.shaded(rng, palette.pick(rng))
        seam = smoothstep(ramp(shape, rng.choice([0.0, 1.57])) + 0.02 * noise(rng, shape, 30, 2), 0.48, 0.52)
        picture, words = between(colour, other, seam), f"{words} and {second}"
    return picture, f"{finish} {words}".strip(), gloss


def stuff(rng: Rng) -> str:
    """A noun for a surface."""
    return word(rng, *_STUFFS)


def photograph(rng: Rng, shape: Shape) -> np.ndarray:
    """The statistics of photographs without their subjects: shapes of all sizes that hide one another, and noise.

    The dead leaves model (Lee, Mumford and Huang 2001, "Occlusion models for natural images"): sizes of density r⁻³.
    """
    mean, spread = palette.any_colour(rng), rng.uniform(0.05, 0.4)
    height, width = shape
    canvas = Image.new("RGB", (width, height), _eight_bits(mean))
    pen = ImageDraw.Draw(canvas)
    count = int(rng.integers(20, 60))
    radii = np.minimum(4.5 / np.sqrt(rng.random(count) + 0.01), 36) * min(shape) / 128
    places, aspects = rng.random((count, 2)) * (width, height), np.exp(rng.normal(0, 0.5, count))
    colours = mean + spread * (0.8 * rng.standard_normal((count, 1)) + 0.45 * rng.standard_normal((count, 3)))
    colours = np.clip(colours * 255, 0, 255).astype(int).tolist()
    corners = rng.integers(3, 7, count)
    round_ones = rng.random(count) < 0.5
    for place in range(count):
        (x, y), radius, aspect = places[place], radii[place], aspects[place]
        fill = tuple(colours[place])
        if round_ones[place]:
            pen.ellipse((x - radius * aspect, y - radius / aspect, x + radius * aspect, y + radius / aspect), fill)
        else:
            turns = aspect + np.arange(corners[place]) * (6.283 / corners[place])
            pen.polygon([c for t in turns for c in (x + 1.3 * radius * math.cos(t), y + radius * math.sin(t))], fill)
    picture = np.asarray(canvas, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
    texture = noise(rng, shape, rng.uniform(6, 60), 5, rng.uniform(0.4, 0.7))
    picture = picture * (1 + rng.uniform(0.02, 0.25) * texture)
    if rng.random() < 0.4:
        picture = picture + rng.uniform(0.01, 0.05) * grain(rng, shape)
    if rng.random() < 0.3:
        radius = rng.uniform(0.4, 2.5)
        picture = np.stack([blurred(plane, radius) for plane in picture])
    return picture


def _eight_bits(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(colour * 255, 0, 255))
