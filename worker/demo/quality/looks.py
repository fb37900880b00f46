"""Which brand look a picture is in, told from eight numbers of it.

The numbers describe local variation and its direction, not what is shown, so that any backdrop and product will do.
The rule is the quadratic discriminant (Fisher 1936, "The use of multiple measurements in taxonomic problems", without
the assumption that all spread alike): every look is a normal distribution, and the likeliest wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from worker.demo.scenes import Scene, make_scene
from worker.demo.scenes.looks import LOOKS
from worker.demo.scenes.palette import to_lab

PLAIN = "none"
CLASSES = (PLAIN, *LOOKS)


def look_numbers(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Eight numbers [8] of the part of a picture [3, h, w] (0…1) where `mask` [h, w] is 1.

    Mean lightness; contrast of lightness and of colour over four pixels; whether colours differ along one line (0) or
    in all directions (1); how much of the lightness's slope runs
    diagonally, and how much along the axes rather than between them; skewness of lightness; contrast over two pixels
    as a share of that over ten.
    """
    inside = mask.astype(bool)
    lab = to_lab(picture.astype(np.float64)) / 100
    light = lab[0]
    values = light[inside]
    near, middle, far = (_contrast(lab[:1], inside, distance) for distance in (2, 4, 10))
    minor, major = np.linalg.eigvalsh(_differences(lab[1:], inside, 4))
    both = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    slope_y = (light[2:, 1:-1] - light[:-2, 1:-1])[both]
    slope_x = (light[1:-1, 2:] - light[1:-1, :-2])[both]
    energy = slope_x**2 + slope_y**2
    total = energy.sum() + 1e-4 * len(energy)
    diagonal = (2 * slope_x * slope_y).sum() / total
    axial = (energy - 8 * slope_x**2 * slope_y**2 / (energy + 1e-9)).sum() / total  # |slope|² · cos 4θ
    spread = values.std() + 0.02
    skewness = ((values - values.mean()) ** 3).mean() / spread**3
    colour, hues = np.sqrt(major + minor), np.sqrt((minor + 1e-5) / (major + 2e-4))
    return np.array([values.mean(), middle, colour, hues, diagonal, axial, skewness, near / (far + 0.02)])


def _contrast(plane: np.ndarray, inside: np.ndarray, distance: int) -> float:
    """Root mean square difference of one plane [1, h, w]."""
    return float(np.sqrt(_differences(plane, inside, distance)[0, 0]))


def _differences(planes: np.ndarray, inside: np.ndarray, distance: int) -> np.ndarray:
    """Second moments [n, n] of how `planes` [n, h, w] differ between pixels `distance` apart, down and across."""
    total, count = np.zeros((len(planes), len(planes))), 1
    for axis in (1, 2):
        first, second = _pair(planes, axis, distance)
        one, other = _pair(inside[None], axis, distance)
        both = (one & other)[0]
        difference = (second - first)[:, both]
        total += difference @ difference.T
        count += difference.shape[1]
    return total / count


def _pair(planes: np.ndarray, axis: int, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Every value that has a neighbour `distance` further along an axis, and those neighbours."""
    last = planes.shape[axis]
    return planes.take(range(last - distance), axis), planes.take(range(distance, last), axis)


@dataclass(frozen=True)
class LookClassifier:
    """`means` [classes, 8], and `precisions` [classes, 8, 8], the inverse covariances."""

    names: Sequence[str]
    means: np.ndarray
    precisions: np.ndarray

    @classmethod
    def fit(cls, numbers: Mapping[str, Sequence[np.ndarray]]) -> Self:
        """From `look_numbers` of examples of each class."""
        groups = {name: np.stack(list(examples)) for name, examples in numbers.items()}
        means = {name: group.mean(axis=0) for name, group in groups.items()}
        own = np.stack([np.cov(group.T) for group in groups.values()])
        # a fifth of what all have in common keeps a covariance of few examples from being too sure of itself
        covariances = 0.8 * own + 0.2 * own.mean(axis=0)
        return cls(tuple(groups), np.stack(list(means.values())), np.linalg.inv(covariances))

    @classmethod
    def of_generator(cls, seed: int, examples: int, shape: tuple[int, int] = (128, 128)) -> Self:
        """Fitted to scenes of every look and of none, whose backdrop is what is measured."""
        return cls.fit({name: list(generator_numbers(seed, name, examples, shape)) for name in CLASSES})

    def __call__(self, numbers: np.ndarray) -> str:
        away = self.means - numbers
        distance = np.einsum("ci,cij,cj->c", away, self.precisions, away)
        return self.names[int((distance - np.linalg.slogdet(self.precisions)[1]).argmin())]


def look_scenes(seed: int, name: str, examples: int, shape: tuple[int, int] = (128, 128)) -> Iterator[Scene]:
    """Generator scenes in a look, or in none."""
    for index in range(examples):
        kind = ("plain", "gradient", "paper", "two colours")[index % 4]
        yield make_scene(seed, index, shape, kind=kind, mask="around", look=None if name == PLAIN else name)


def generator_numbers(seed: int, name: str, examples: int, shape: tuple[int, int] = (128, 128)) -> Iterable[np.ndarray]:
    """`look_numbers` of those scenes."""
    for scene in look_scenes(seed, name, examples, shape):
        yield look_numbers(scene.picture.astype(np.float32) / 255, scene.mask)
