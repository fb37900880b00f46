"""Captions: what the repainted part shows, in an editor's words, and not always the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from worker.demo.scenes.fields import Rng
from worker.demo.scenes.products import stuff
from worker.demo.scenes.words import word


def caption(rng: Rng, repainted: str, backdrop: str, light: Sequence[str], product: str, fill: str) -> str:
    """`repainted` is a kind of mask; `light` may be empty, `fill` too, where the product's look has no words."""
    if repainted == "product":
        return _product_alone(rng, product, fill)
    words = backdrop
    if light and rng.random() < 0.6:
        words = f"{words}, {light[rng.integers(len(light))]}"
    # a mask that leaves some backdrop and cuts through the product is about both
    if rng.random() < (0.2 if repainted == "around" else 0.65):
        return _with_product(rng, words, f"{fill} {product}".strip())
    return (
        f"{word(rng, 'photo, ', 'product photo, ', 'studio shot, ', 'catalogue photo, ')}{words}"
        if rng.random() < 0.15
        else words
    )


def _product_alone(rng: Rng, product: str, fill: str) -> str:
    if not fill:
        return product
    noun = product if rng.random() < 0.45 else stuff(rng)
    return f"{fill} {noun}" if rng.random() < 0.7 else _one(f"{fill} {noun}")


def _with_product(rng: Rng, backdrop: str, product: str) -> str:
    if rng.random() < 0.5:
        subject = product if rng.random() < 0.4 else _one(product)
        return f"{word(rng, '', '', 'photo of ')}{subject} {word(rng, 'on', 'on a', 'in front of a')} {backdrop}"
    return f"{backdrop} with {_one(product)}"


def _one(noun: str) -> str:
    return noun if noun.endswith("s") and not noun.endswith("ss") else f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
