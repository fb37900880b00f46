"""Scenes as tensors, made by as many processes as there are, in an order that does not depend on how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worker.demo.scenes import Scene, make_scene
from worker.demo.scenes.looks import LOOKS
from worker.engine.text import load_tokenizer


class Batch(NamedTuple):
    """`pictures` [B, 3, H, W] uint8, `masks` [B, 1, H, W] uint8 (1: repaint), `tokens` [B, 77] int16."""

    pictures: Tensor
    masks: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


# Series of scenes that have none in common, for one seed or for several.
_SERIES = ("autoencoder", "denoiser", "looks", "quality")


def series(seed: int, purpose: str) -> int:
    """The number to make scenes of one purpose from."""
    return seed * len(_SERIES) + _SERIES.index(purpose)


def as_signal(pictures: Tensor) -> Tensor:
    """uint8 to what the autoencoder takes: float32 in −1…1."""
    return pictures.float() / 127.5 - 1


def mixed_scene(seed: int, index: int, shape: tuple[int, int]) -> Scene:
    """What the autoencoder learns from: every fourth scene is in a brand look, so that it can show those too."""
    looks = tuple(LOOKS)
    return make_scene(seed, index, shape, look=looks[index // 4 % len(looks)] if index % 4 == 0 else None)


class Scenes(Dataset[tuple[np.ndarray, np.ndarray, str]]):
    def __init__(self, make: Callable[[int], Scene]):
        self._make = make

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        return tuple(self._make(index))


class Collate:
    """Captions become tokens where the scenes are made, since there is more than one processor there."""

    def __init__(self, tokenizer_folder: Path):
        self._folder, self._tokenizer = tokenizer_folder, None

    def __call__(self, rows: list[tuple[np.ndarray, np.ndarray, str]]) -> Batch:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder)
        pictures, masks, captions = zip(*rows, strict=True)
        return Batch(
            torch.from_numpy(np.stack(pictures)),
            torch.from_numpy(np.stack(masks))[:, None],
            tokens_of(self._tokenizer, list(captions)),
        )


def tokens_of(tokenizer, captions: list[str]) -> Tensor:
    """[B, 77] int16: cut off or filled up with the end's mark, as the pipeline does."""
    filled = tokenizer(captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    return torch.tensor(filled["input_ids"], dtype=torch.int16)


def stream(
    make: Callable[[int], Scene], tokenizer_folder: Path, first: int, last: int, batch: int, workers: int
) -> Iterator[Batch]:
    """Scenes `first` … `last` − 1 in batches, in order."""
    loader = DataLoader(
        Scenes(make),
        batch_sampler=[range(begin, min(begin + batch, last)) for begin in range(first, last, batch)],
        collate_fn=Collate(tokenizer_folder),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
