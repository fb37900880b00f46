"""Scenes encoded once, so that the denoiser's steps cost nothing but the denoiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worker.demo.scenes import Scene
from worker.demo.training.data import Batch, as_signal, stream
from worker.demo.training.journal import Journal
from worker.demo.training.loop import step_generator
from worker.engine.masks import to_latent_grid
from worker.engine.vae import AutoencoderKL


class Pool(NamedTuple):
    """All of one size: `latents` and `masked` [N, 4, h, w] float16, scaled; `masks` [N, 1, h, w] uint8 on the latent
    grid; `tokens` [N, 77] int16."""

    latents: Tensor
    masked: Tensor
    masks: Tensor
    tokens: Tensor

    def __len__(self) -> int:  # scenes, not fields
        return len(self.latents)

    def to(self, device: torch.device) -> Pool:
        return Pool(*(tensor.to(device) for tensor in self))

    def rows(self, chosen: Tensor) -> Pool:
        return Pool(*(tensor[chosen] for tensor in self))


def pool(
    path: Path,
    make: Callable[[int], Scene],
    count: int,
    vae: AutoencoderKL,
    tokenizer: Path,
    *,
    seed: int,
    workers: int,
    journal: Journal,
) -> Pool:
    """The pool in `path`, filled with `count` scenes if it is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        journal.open(path.stem)
        began, parts, done = time.monotonic(), [], 0
        for number, batch in enumerate(stream(make, tokenizer, 0, count, 32, workers)):
            parts.append(encode(vae, batch, step_generator(seed, path.stem, number)))
            done += len(batch.pictures)
            journal.note(done, count, "scenes", began)
        filled = {
            name: torch.cat(tensors) for name, tensors in zip(Pool._fields, zip(*parts, strict=True), strict=True)
        }
        unfinished = path.with_suffix(".partial")
        save_file(filled, unfinished)
        unfinished.replace(path)
    with safe_open(path, "pt") as file:
        return Pool(*(file.get_tensor(name) for name in Pool._fields))


@torch.no_grad()
def encode(vae: AutoencoderKL, batch: Batch, generator: torch.Generator) -> Pool:
    """As the pipeline does it: a sample of the posterior, scaled, of the picture and of the picture with its mask
    painted grey; the mask brought to the latent grid by its nearest pixel. On the CPU."""
    batch = batch.to(vae.device)
    pictures = as_signal(batch.pictures)
    both = torch.cat([pictures, pictures * (batch.masks == 0)]).contiguous(memory_format=torch.channels_last)
    with torch.autocast(vae.device.type, torch.bfloat16, enabled=vae.device.type == "cuda"):
        posterior = vae.encode(both)
    latents = (posterior.sample(generator).float() * vae.config.scaling_factor).to("cpu", torch.float16)
    grid = to_latent_grid(batch.masks.float(), *latents.shape[2:]).to("cpu", torch.uint8)
    first, second = (half.contiguous() for half in latents.chunk(2))
    return Pool(first, second, grid, batch.tokens.cpu())


def draw(pools: Sequence[Pool], batch: int, generator: torch.Generator) -> Pool:
    """`batch` rows of one of the pools, the pool chosen by how many scenes it has; fewer rows of larger pictures.

    `generator` is one of the CPU, so that the choice is the same on every device.
    """
    sizes = torch.tensor([float(len(one)) for one in pools])
    one = pools[int(torch.multinomial(sizes, 1, generator=generator))]
    area, least = one.latents[0].numel(), min(other.latents[0].numel() for other in pools)
    rows = max(1, batch * least // area)
    return one.rows(torch.randint(len(one), (rows,), generator=generator).to(one.latents.device))
