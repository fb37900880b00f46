"""Does a LoRA put the backdrop into its brand's look, and is no look there without one?"""

from __future__ import annotations

from typing import Final

import numpy as np

from worker.demo.quality.colours import colour_cases
from worker.demo.quality.looks import CLASSES, LookClassifier, look_numbers, look_scenes
from worker.demo.quality.painter import SEED, Order, Painter
from worker.demo.scenes.looks import LOOKS
from worker.demo.training.data import series

CASES: Final = 20  # of each look
_EXAMPLES: Final = 32  # of each look, for the classifier
_FIRST: Final = 2000  # number of the first scene, far from those of the other measures


def brand_orders(look: str, count: int = CASES) -> list[Order]:
    """Backdrops in the twelve main colours, with the look's trigger words."""
    place = tuple(LOOKS).index(look)
    triggers = LOOKS[look].triggers
    cases = colour_cases(count, first=_FIRST + 100 * place)
    return [
        case.order._replace(prompt=f"{case.order.prompt}, {triggers[number % len(triggers)]}")
        for number, case in enumerate(cases)
    ]


def fitted_classifier(painter: Painter) -> LookClassifier:
    """From the generator's own scenes of every look, as this model's autoencoder shows them: no denoiser can paint
    finer than that, and the classifier's numbers are about what is fine."""
    numbers = {}
    for name in CLASSES:
        scenes = list(look_scenes(series(SEED, "looks"), name, _EXAMPLES))
        shown = painter.reconstruct(scenes)
        numbers[name] = [look_numbers(picture, scene.mask) for picture, scene in zip(shown, scenes, strict=True)]
    return LookClassifier.fit(numbers)


def looks_found(classify: LookClassifier, orders: list[Order], painted: np.ndarray) -> list[str]:
    """The look that each repainted part is in, or "none"."""
    return [classify(look_numbers(picture, order.scene.mask)) for order, picture in zip(orders, painted, strict=True)]
