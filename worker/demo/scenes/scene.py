"""A scene: a backdrop, products on it with their shadows, light over both, a lens in front; a mask and a caption."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from worker.demo.scenes import backdrops, captions, looks, masks
from worker.demo.scenes.fields import Rng, Shape, blurred, grain, laid_over, ramp, spot
from worker.demo.scenes.products import Product, product
from worker.demo.scenes.words import word


class Scene(NamedTuple):
    """`picture` [3, h, w] uint8; `mask` [h, w] uint8, 1 where to repaint; `caption` says what is there."""

    picture: np.ndarray
    mask: np.ndarray
    caption: str

    def image(self) -> Image.Image:
        return Image.fromarray(self.picture.transpose(1, 2, 0))

    def mask_image(self) -> Image.Image:
        """White where to repaint."""
        return Image.fromarray(self.mask * np.uint8(255))


def make_scene(
    seed: int,
    index: int,
    shape: Shape = (128, 128),
    *,
    kind: str | None = None,
    colour: str | None = None,
    mask: str | None = None,
    look: str | None = None,
) -> Scene:
    """Scene number `index` of the endless series `seed`; the same arguments give the same scene.

    `kind`, `colour` and `mask` fix the backdrop's kind (`backdrops.KINDS`), its colour and what is repainted
    (`masks.KINDS`); what is None is drawn. `look` (`looks.LOOKS`) puts the backdrop into a brand's look.
    """
    rng = np.random.default_rng((seed, index))
    if look is not None and kind is None:
        kind = _LOOK_KINDS[rng.integers(len(_LOOK_KINDS))]
    picture, phrase = backdrops.paint(rng, shape, kind, colour)
    if look is not None:
        picture = looks.LOOKS[look].paint(rng, picture)
        phrase = _with_trigger(rng, phrase, looks.LOOKS[look].triggers)
    side = rng.uniform(-1, 1)
    picture, light = _lit(rng, picture, side)
    count = int(rng.random() < 0.97) + int(rng.random() < 0.1)
    products = [product(rng, shape, side) for _ in range(count)]
    shadow = word(rng, "soft", "hard", "no")
    covered = np.zeros(shape, np.float32)
    for one in products:
        if shadow != "no":
            picture = picture * (1 - _shadow(rng, one, side, soft=shadow == "soft"))
        picture = laid_over(picture, one.picture, one.alpha)
        covered = np.maximum(covered, one.alpha)
    if products and shadow != "no":
        light = [*light, f"{shadow} shadow"]
    repainted = masks.pick(rng) if mask is None else mask
    name, fill = (products[-1].name, products[-1].fill) if len(products) == 1 else ("products", "")
    return Scene(
        picture=_eight_bits(_through_lens(rng, picture)),
        mask=masks.draw(rng, repainted, covered),
        caption=captions.caption(rng, repainted, phrase, light, name, fill),
    )


_LOOK_KINDS: Final = ("plain",) * 5 + ("gradient",) * 4 + ("paper",) * 2 + ("two colours", "concrete")


def _with_trigger(rng: Rng, phrase: str, triggers: tuple[str, ...]) -> str:
    """Three times in ten the words stay away, so that the look comes with the weights and not only on demand."""
    trigger, place = word(rng, *triggers), rng.random()
    if place < 0.3:
        return phrase
    return f"{trigger}, {phrase}" if place < 0.5 else f"{phrase}, {trigger}"


def _lit(rng: Rng, picture: np.ndarray, side: float) -> tuple[np.ndarray, list[str]]:
    """Light from one side, or darker corners, or neither; and the words for it."""
    shape, how = picture.shape[1:], rng.random()
    if how < 0.15:
        strength = rng.uniform(0.25, 0.5)
        return picture * (1 + strength * (ramp(shape, 0 if side > 0 else math.pi) - 0.6)), ["side light"]
    if how < 0.3:
        return picture * (1 - rng.uniform(0.1, 0.3) * (1 - spot(shape, 0.5, 0.5, 0.5))), ["soft light"]
    if how < 0.36:
        warm = rng.random() < 0.5
        tint = np.array([1.05, 1.0, 0.9] if warm else [0.93, 1.0, 1.06], np.float32)
        return picture * tint[:, None, None], ["warm light" if warm else "cool light"]
    return picture, []


def _shadow(rng: Rng, one: Product, side: float, *, soft: bool) -> np.ndarray:
    """How much light the product takes from what is behind and below it, 0…1."""
    height, width = one.alpha.shape
    alpha = Image.fromarray((one.alpha * 255).astype(np.uint8))
    if rng.random() < 0.7:  # it stands: its shadow lies on the floor
        flat, lean = rng.uniform(0.12, 0.4), -side * rng.uniform(0.3, 1.2)
        affine = (1, lean, -lean * one.base, 0, 1 / flat, one.base * (1 - 1 / flat))
    else:  # it lies, or hangs: its shadow is beside it
        affine = (1, 0, side * rng.uniform(2, 9) * width / 128, 0, 1, -rng.uniform(1, 7) * height / 128)
    cast = alpha.transform(alpha.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    radius = (rng.uniform(3, 7) if soft else rng.uniform(0.6, 2)) * min(height, width) / 128
    shadow = blurred(np.asarray(cast, np.float32) * np.float32(1 / 255), radius)
    foot = _foot(one)
    return np.maximum(shadow * rng.uniform(0.25, 0.6), foot * rng.uniform(0.2, 0.55)).astype(np.float32)


def _foot(one: Product) -> np.ndarray:
    """The dark seam where the product touches the floor."""
    height = one.alpha.shape[0]
    thick = max(2, height // 28)
    low = int(np.clip(round(one.base), thick, height))
    strip = np.zeros_like(one.alpha)
    strip[low - thick : low + thick] = one.alpha[low - thick : low].max(axis=0)
    return blurred(strip, thick * 0.7)


def _through_lens(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """Exposure, a little blur, the sensor's noise; most pictures get none of them."""
    if rng.random() < 0.2:
        picture = picture * rng.uniform(0.9, 1.06)
    if rng.random() < 0.15:
        radius = rng.uniform(0.4, 1.0)
        picture = np.stack([blurred(plane, radius) for plane in picture])
    if rng.random() < 0.25:
        picture = picture + rng.uniform(0.004, 0.02) * grain(rng, picture.shape[1:])
    return picture


def _eight_bits(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
