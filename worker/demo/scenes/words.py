"""Drawing words."""

from __future__ import annotations

import numpy as np


def word(rng: np.random.Generator, *choices: str) -> str:
    return choices[rng.integers(len(choices))]
