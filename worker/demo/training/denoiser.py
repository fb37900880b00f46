"""The second stage: the UNet, and with it the text encoder that it listens to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from worker.demo.layout import SCHEDULER, new_text_encoder, text_config, unet_config
from worker.demo.training.initial import initialise
from worker.demo.training.loop import step_generator
from worker.demo.training.losses import min_snr_weight
from worker.demo.training.pools import Pool, draw
from worker.demo.training.settings import DenoiserSettings, Settings
from worker.engine.schedulers.noise_schedule import alphas_cumprod
from worker.engine.unet import UNet2DConditionModel

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # (sample [B, 9, h, w], timesteps [B], text [B, L, D]) → v


class Denoising:
    """The loss of one batch: squared error of v at one noise level a row."""

    def __init__(self, settings: DenoiserSettings, device: torch.device):
        self._settings = settings
        bar = alphas_cumprod(SCHEDULER).to(device, torch.float32)
        self._signal, self._noise = bar.sqrt(), (1 - bar).sqrt()
        self._weight = min_snr_weight(bar, settings.snr_gamma)

    def loss(self, predict: Predict, rows: Pool, text: Tensor, generator: torch.Generator) -> Tensor:
        """`text` [B, L, D]; `generator` lives where the rows do."""
        latents, masked, mask = rows.latents.float(), rows.masked.float(), rows.masks.float()
        device = latents.device
        drawn = {"generator": generator, "device": device}
        times = torch.randint(len(self._signal), (len(latents),), **drawn)
        noise, offset = torch.randn(latents.shape, **drawn), torch.randn(latents.shape[:2], **drawn)
        noise = noise + self._settings.noise_offset * offset[:, :, None, None]
        signal, sigma = (table[times][:, None, None, None] for table in (self._signal, self._noise))
        noisy, velocity = signal * latents + sigma * noise, signal * noise - sigma * latents
        sample = torch.cat([noisy, mask, masked], dim=1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = predict(sample, times, text)
        where = self._settings.kept_weight + (1 - self._settings.kept_weight) * mask
        error = ((predicted.float() - velocity) ** 2 * where).mean(dim=(1, 2, 3)) / where.mean(dim=(1, 2, 3))
        return (error * self._weight[times]).mean()


class DenoiserStage:
    name = "denoiser"

    def __init__(self, settings: Settings, entries: int, pools: Sequence[Pool], empty: Tensor, device: torch.device):
        """`entries`: of the vocabulary. `empty` [77]: the tokens of a caption that is left out."""
        own = settings.denoiser
        self._seed, self._settings, self._device = settings.seed, own, device
        self._pools = [one.to(device) for one in pools]
        self._empty = empty.to(device)
        torch.manual_seed(settings.seed + 1)
        self.text_settings = text_config(own.text_width, own.text_layers, entries)
        config = unet_config(own.widths, own.text_width, groups=own.groups, sample_size=settings.side // 8)
        self.unet = UNet2DConditionModel.from_config(config)
        initialise(self.unet)
        nn.init.zeros_(self.unet.conv_out.weight)  # the first predictions are 0, the mean of what is asked
        self.unet.to(memory_format=torch.channels_last)
        self.text_encoder: CLIPTextModel = new_text_encoder(self.text_settings)
        self.network = nn.ModuleDict({"unet": self.unet, "text_encoder": self.text_encoder}).to(device)
        self._denoising = Denoising(own, device)

    def loss(self, step: int) -> Tensor:
        generator = step_generator(self._seed, self.name, step, self._device)
        rows = draw(self._pools, self._settings.schedule.batch, step_generator(self._seed, f"{self.name} rows", step))
        dropped = torch.rand(len(rows), 1, generator=generator, device=self._device) < self._settings.drop_caption
        tokens = torch.where(dropped, self._empty, rows.tokens)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            text = self.text_encoder(tokens.long()).last_hidden_state
        return self._denoising.loss(self.unet, rows, text, generator)
