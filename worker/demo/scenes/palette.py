"""Colours by their everyday names, the words that shade them, and which name a measured colour is nearest to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

Rgb = np.ndarray
"""[3], float32, 0…1, as a screen takes it (sRGB)."""

# The twelve that no two people would confuse: what is asked for, and measured, in the quality test.
MAIN: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (205, 38, 38),
    "orange": (240, 130, 30),
    "yellow": (245, 208, 60),
    "green": (50, 150, 65),
    "teal": (20, 130, 132),
    "blue": (40, 85, 200),
    "purple": (120, 55, 160),
    "pink": (238, 145, 182),
    "brown": (120, 75, 45),
    "white": (240, 240, 238),
    "grey": (140, 140, 142),
    "black": (28, 28, 30),
}

FINE: Final[Mapping[str, tuple[int, int, int]]] = {
    "navy": (25, 35, 85),
    "turquoise": (60, 200, 195),
    "mint": (170, 230, 200),
    "lavender": (190, 170, 230),
    "cream": (245, 235, 205),
    "beige": (220, 200, 170),
    "gold": (205, 160, 60),
    "silver": (185, 188, 192),
    "crimson": (165, 20, 45),
    "coral": (250, 120, 95),
    "peach": (250, 200, 165),
    "olive": (115, 120, 50),
    "maroon": (100, 25, 35),
    "violet": (135, 80, 210),
    "magenta": (215, 45, 150),
    "cyan": (60, 200, 230),
    "amber": (250, 175, 40),
    "ivory": (248, 244, 228),
    "charcoal": (55, 57, 62),
    "copper": (184, 110, 66),
    "bronze": (140, 105, 60),
}

COLOURS: Final = {**MAIN, **FINE}
_SPELLINGS: Final = {"grey": "gray"}  # written either way in captions, meant the same

# A shading word: towards which grey level, and by how much.
_SHADES: Final[Mapping[str, tuple[float, float]]] = {
    "pastel": (0.97, 0.50),
    "pale": (0.95, 0.42),
    "light": (0.95, 0.28),
    "dark": (0.02, 0.45),
    "deep": (0.0, 0.25),
    "bright": (1.0, 0.08),
}
_UNSHADED: Final = frozenset({"white", "black", "ivory", "cream", "charcoal", "silver", "gold", "navy", "maroon"})


def rgb(name: str) -> Rgb:
    return np.array(COLOURS[name], np.float32) / 255


def pick(rng: np.random.Generator, names: Sequence[str] | None = None) -> str:
    """A colour's name: one of `names`, or of all, the twelve main ones more often."""
    if names is None:
        names = tuple(MAIN) if rng.random() < 0.75 else tuple(FINE)
    return names[rng.integers(len(names))]


def shaded(rng: np.random.Generator, name: str, jitter: float = 0.04) -> tuple[Rgb, str]:
    """A colour that would be called `name`, and the words for it: "red", "pastel pink", "dark gray"."""
    colour, words = rgb(name), name
    if name in _SPELLINGS and rng.random() < 0.3:
        words = _SPELLINGS[name]
    if name not in _UNSHADED and rng.random() < 0.3:
        shade = tuple(_SHADES)[rng.integers(len(_SHADES))]
        level, amount = _SHADES[shade]
        colour, words = colour + (level - colour) * amount, f"{shade} {words}"
    moved = colour + rng.normal(0, jitter, 3) * 0.6 + rng.normal(0, jitter) * 0.8
    return np.clip(moved, 0, 1).astype(np.float32), words


def any_colour(rng: np.random.Generator) -> Rgb:
    """A colour without a name, as photographs have them: any lightness, saturated seldom."""
    grey = rng.beta(1.3, 1.3)
    return np.clip(grey + rng.normal(0, 0.22 * rng.random() ** 0.7, 3), 0, 1).astype(np.float32)


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65, 2°; CIE 15:2004) of sRGB values [3, …] in 0…1: L* 0…100, a* and b* about ±100."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    white = to_xyz.sum(axis=1)
    xyz = np.tensordot(to_xyz / white[:, None], linear, axes=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


_MAIN_LAB: Final = to_lab(np.array(list(MAIN.values())).T / 255)  # [3, 12]


def nearest_name(colour: np.ndarray) -> str:
    """Which of the twelve main colours an sRGB colour [3] is nearest to, by distance in L*a*b*."""
    distance = ((_MAIN_LAB - to_lab(np.asarray(colour, np.float64))[:, None]) ** 2).sum(axis=0)
    return tuple(MAIN)[int(distance.argmin())]
