"""The first stage: an autoencoder of the project's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from worker.demo.layout import vae_config
from worker.demo.training.data import Batch, as_signal, mixed_scene, series, stream
from worker.demo.training.initial import initialise
from worker.demo.training.loop import step_generator
from worker.demo.training.losses import divergence, reconstruction_loss
from worker.demo.training.settings import Settings
from worker.engine.vae import AutoencoderKL


class AutoencoderStage:
    """Scenes and masked scenes there and back; both are what a pipeline encodes."""

    name = "autoencoder"

    def __init__(self, settings: Settings, tokenizer: Path, device: torch.device):
        self._settings, self._tokenizer, self._device = settings, tokenizer, device
        own = settings.vae
        torch.manual_seed(settings.seed)
        config = vae_config(own.widths, groups=own.groups, sample_size=2 * settings.side)
        self.network = AutoencoderKL.from_config(config)
        initialise(self.network)
        # the noise of the posterior begins small, or the first thing to be learnt is to shout it down
        nn.init.constant_(self.network.quant_conv.bias[4:], -4.0)
        self.network.to(device, memory_format=torch.channels_last)
        self._batches: Iterator[Batch] | None = None

    def loss(self, step: int) -> Tensor:
        settings, generator = self._settings, step_generator(self._settings.seed, self.name, step)
        pictures = self._pictures(next(self._stream(step)), generator)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            latents = self.network.encode(pictures)
            noise = torch.randn(latents.mean.shape, generator=generator).to(self._device)
            made = self.network.decode(latents.mean + latents.std * noise)
        return reconstruction_loss(made.float(), pictures) + settings.vae.kl * divergence(latents)

    def _stream(self, step: int) -> Iterator[Batch]:
        if self._batches is None:
            settings, schedule = self._settings, self._settings.vae.schedule
            make = partial(mixed_scene, series(settings.seed, self.name), shape=(settings.side, settings.side))
            ends = (step * schedule.batch, schedule.steps * schedule.batch)
            self._batches = stream(make, self._tokenizer, *ends, schedule.batch, settings.workers)
        return self._batches

    def _pictures(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A crop of every scene; in a quarter of them what is to be repainted is grey."""
        crop, side = self._settings.vae.crop, self._settings.side
        top, left = torch.randint(side - crop + 1, (2,), generator=generator).tolist()
        masked = torch.rand(len(batch.pictures), 1, 1, 1, generator=generator) < 0.25
        batch, masked = batch.to(self._device), masked.to(self._device)
        signal = as_signal(batch.pictures) * ~(masked & (batch.masks > 0))
        window = signal[:, :, top : top + crop, left : left + crop]
        return window.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def with_scaling_factor(vae: AutoencoderKL, pictures: Tensor) -> AutoencoderKL:
    """The same autoencoder with the factor that gives the latents of these pictures (−1…1) a deviation of 1."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([vae.encode(part).sample(generator) for part in pictures.split(16)])
    factor = round(float(1 / latents.float().std()), 5)
    config = {**vae.config, "scaling_factor": factor}
    return AutoencoderKL.from_weights(config, vae.state_dict(), None).to(pictures.device)
