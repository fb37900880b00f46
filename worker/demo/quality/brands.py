"""Does a LoRA put the backdrop into its brand's look, and is no look there without one?"""

from __future__ import annotations

from typing import Final

import numpy as np

from worker.demo.quality.colours import colour_cases
from worker.demo.quality.looks import CLASSES, PLAIN, LookClassifier, look_numbers
from worker.demo.quality.painter import Order, Painter
from worker.demo.scenes.looks import LOOKS

CASES: Final = 20  # of each look
_EXAMPLES: Final = {PLAIN: 48} | dict.fromkeys(LOOKS, 24)  # for the classifier; plain backdrops are of more kinds
_FIRST: Final = 2000  # number of the first scene, far from those of the other measures
_SHIFT: Final = 50_000  # from a case to an example: another scene, another seed


def brand_orders(look: str, count: int = CASES, shift: int = 0) -> list[Order]:
    """Backdrops in the twelve main colours, with the look's trigger words (none for "none")."""
    place = CLASSES.index(look)
    cases = colour_cases(count, first=_FIRST + 100 * place + shift)
    triggers = [""] if look == PLAIN else [f", {words}" for words in LOOKS[look].triggers]
    return [
        Order(case.order.scene, case.order.prompt + triggers[number % len(triggers)], case.order.seed + shift)
        for number, case in enumerate(cases)
    ]


def fitted_classifier(painter: Painter) -> LookClassifier:
    """From the model's own paintings of every look, of other scenes and from other noise than those that are judged:
    what is asked is whether the looks can be told from one another and from none.
    """
    numbers = {}
    for name in CLASSES:
        orders = brand_orders(name, _EXAMPLES[name], _SHIFT)
        painted = painter.paint(orders, None if name == PLAIN else name)
        numbers[name] = [
            look_numbers(picture, order.scene.mask) for order, picture in zip(orders, painted, strict=True)
        ]
    return LookClassifier.fit(numbers)


def looks_found(classify: LookClassifier, orders: list[Order], painted: np.ndarray) -> list[str]:
    """The look that each repainted part is in, or "none"."""
    return [classify(look_numbers(picture, order.scene.mask)) for order, picture in zip(orders, painted, strict=True)]
