"""Backdrops that no studio has: lights out of focus, skies, leaves, grass, sand, snow, water."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from worker.demo.scenes import palette
from worker.demo.scenes.fields import Rng, Shape, between, flat, grain, grid, laid_over, noise, ramp, smoothstep
from worker.demo.scenes.words import word

# Lights: colours of the lamps, and of the dark behind them.
_LAMPS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "warm": (("amber", "orange", "gold", "peach", "yellow"), "maroon"),
    "cool": (("blue", "cyan", "turquoise", "lavender", "white"), "navy"),
    "pink": (("pink", "magenta", "lavender", "peach"), "purple"),
    "green": (("green", "mint", "yellow", "olive"), "green"),
    "blue": (("blue", "cyan", "white"), "navy"),
    "purple": (("violet", "purple", "magenta", "lavender"), "purple"),
    "gold": (("gold", "amber", "cream"), "brown"),
}
LAMPS: Final = tuple(_LAMPS)


def bokeh(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Discs of light over the dark, as a wide lens makes of lamps that are out of focus."""
    lamps, dark = _LAMPS[name]
    night = rng.random() < 0.6
    base = palette.rgb(dark) * np.float32(0.25 if night else 0.7)
    below = between(base * np.float32(0.6), base * np.float32(1.4), ramp(shape, rng.uniform(0, 6.28)))
    layer, scale = Image.new("RGB", shape[::-1]), min(shape) / 128
    for radius in np.sort(rng.uniform(3, 15, rng.integers(14, 34)) * scale):
        colour = palette.rgb(lamps[rng.integers(len(lamps))]) * 255 * rng.uniform(0.3, 0.85)
        x, y = rng.random() * shape[1], rng.random() * shape[0]
        disc = Image.new("RGB", (int(2 * radius + 2),) * 2)
        ImageDraw.Draw(disc).ellipse((0, 0, 2 * radius, 2 * radius), tuple(int(c) for c in colour))
        box = (int(x - radius), int(y - radius))
        layer.paste(ImageChops.add(_cut(layer, box, disc.size), disc), box)
    layer = layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 2.5)))
    light = np.asarray(layer, np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
    time = word(rng, " in the evening", " at night", " in the evening", "") if night else ""
    return below + light * (1 - below), f"{name} bokeh {word(rng, 'lights', 'lights', 'light', 'background')}{time}"


def _cut(picture: Image.Image, corner: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    return picture.crop((*corner, corner[0] + size[0], corner[1] + size[1]))


# A sky: colour above, colour at the horizon, colour of its clouds, its words.
_SKIES: Final[Mapping[str, tuple[str, str, str, tuple[str, ...]]]] = {
    "blue": ("blue", "cyan", "white", ("blue sky with clouds", "blue sky", "bright blue sky with white clouds")),
    "orange": ("violet", "orange", "amber", ("orange sunset sky", "sunset sky", "warm sunset sky with clouds")),
    "pink": ("lavender", "pink", "peach", ("pink sunrise sky", "pastel pink sky", "pink sky with clouds")),
    "grey": ("grey", "silver", "white", ("grey cloudy sky", "grey sky with clouds", "gray sky")),
    "white": ("silver", "white", "white", ("pale morning mist", "white fog", "morning fog", "white mist")),
}
SKIES: Final = tuple(_SKIES)


def sky(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    above, below, cloud, words = _SKIES[name]
    phrase = word(rng, *words)
    y, _ = grid(shape)
    picture = between(palette.rgb(above), palette.rgb(below), smoothstep(y + 0.1 * noise(rng, shape, 60, 2), 0.0, 1.0))
    thick = rng.uniform(0.5, 0.95) if "cloud" in phrase or name == "white" else rng.uniform(0, 0.5)
    clouds = smoothstep(noise(rng, shape, 44, 5, 0.55, 1.8), rng.uniform(-0.4, 0.3), 1.3) * thick
    return laid_over(picture, palette.rgb(cloud), clouds) * np.float32(rng.uniform(0.9, 1.05)), phrase


def stars(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    glow = np.clip(0.35 + 0.3 * noise(rng, shape, 50, 3), 0, 1)
    picture = between(palette.rgb("black") * np.float32(0.5), palette.rgb(name), glow * np.float32(0.8))
    spots = np.asarray(Image.fromarray((rng.random(shape) > 0.992).astype(np.float32) * 255).convert("L"))
    soft = np.asarray(Image.fromarray(spots).filter(ImageFilter.GaussianBlur(0.9)), np.float32) * np.float32(1 / 60)
    return picture + np.minimum(soft, 1), word(rng, "starry night sky", "night sky with stars", "dark starry sky")


def leaves(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    """Blades of many greens, dark ones first, out of focus now and then."""
    size = min(shape) / 128
    picture = Image.new("RGB", shape[::-1], tuple(int(c * 90) for c in palette.rgb(name)))
    pen, count = ImageDraw.Draw(picture), 64
    places = rng.random((count, 2)) * shape[::-1]
    turns, lengths = rng.uniform(0, 6.28, count), rng.uniform(11, 26, count) * size
    colours = palette.rgb(name) + rng.normal(0, 0.05, (count, 3)) + [0.05, 0.06, 0]
    lights = 255 * np.linspace(0.5, 1.35, count) * rng.uniform(0.75, 1.15, count)
    for place, turn, length, colour, light in zip(places, turns, lengths, colours, lights, strict=True):
        along = np.array([np.cos(turn), np.sin(turn)]) * length
        corners = place + _LEAF @ np.array([along, [-along[1], along[0]]])
        pen.polygon(corners.ravel().tolist(), tuple(int(c) for c in np.clip(colour * light, 0, 255)))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    phrase = word(rng, "leaves", "leaf background", "leaves in a garden", "forest leaves")
    return np.asarray(picture, np.float32).transpose(2, 0, 1) * np.float32(1 / 255), f"{name} {phrase}"


# The outline of a leaf, along and across it.
_LEAF: Final = np.array(
    [(-1, 0), (-0.6, 0.22), (-0.1, 0.32), (0.5, 0.2), (1, 0), (0.5, -0.2), (-0.1, -0.32), (-0.6, -0.22)]
)


def grass(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    y, _ = grid(shape)
    blades = noise(rng, shape, 9, 2, 0.8, 0.25) + 0.5 * noise(rng, shape, 2.5, 1, aspect=0.5)
    light = (0.75 + 0.45 * y) * (1 + 0.25 * np.tanh(blades))
    yellow = np.clip(0.2 + 0.15 * noise(rng, shape, 24, 3), 0, 1)
    return between(
        palette.rgb(name), palette.rgb("olive"), yellow
    ) * light, f"{name} {word(rng, 'grass', 'grass', 'garden grass')}"


def sand(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    bends = noise(rng, shape, 40, 2, 0.5, 2)
    ripples = np.sin(bends * 3 + ramp(shape, rng.uniform(0.9, 2.2)) * rng.uniform(15, 45))
    light = 1 + rng.uniform(0.02, 0.09) * ripples + 0.05 * grain(rng, shape)
    return flat(palette.rgb(name), shape) * light, word(rng, "sand beach", "beach sand", "light sand", "warm sand")


def snow(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    drifts = noise(rng, shape, 50, 3, 0.45, 1.6)
    shade = smoothstep(drifts, -1.5, 1.5)
    cool = np.array([0.80, 0.86, 0.95], np.float32)
    return between(cool, palette.rgb(name) + np.float32(0.04), shade) + 0.02 * grain(rng, shape), word(
        rng, "white snow", "snow"
    )


def water(rng: Rng, shape: Shape, name: str) -> tuple[np.ndarray, str]:
    waves = noise(rng, shape, 14, 3, 0.55, 2.2)
    light = np.exp(np.abs(waves) * -3)
    deep = palette.rgb(name) * np.float32(0.75)
    return laid_over(between(deep, palette.rgb("turquoise"), ramp(shape, 1.57)), palette.rgb("white"), light * 0.55), (
        f"{name} {word(rng, 'water', 'sea water', 'sea')}"
    )
