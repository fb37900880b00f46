"""The third stage: a LoRA for each brand look, on top of weights that stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel

from worker.demo.training.denoiser import Denoising
from worker.demo.training.loop import step_generator
from worker.demo.training.pools import Pool, draw
from worker.demo.training.settings import LookSettings, Settings
from worker.engine.unet import UNet2DConditionModel

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_CONVOLUTIONS = ("conv1", "conv2")


def targets(unet: UNet2DConditionModel, settings: LookSettings) -> dict[str, int]:
    """The layers that a LoRA changes, and the rank that each gets."""
    ranks = {}
    for path, module in unet.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(_PROJECTIONS):
            ranks[path] = settings.attention_rank
        elif isinstance(module, nn.Conv2d) and ".resnets." in path and path.endswith(_CONVOLUTIONS):
            ranks[path] = settings.convolution_rank
    return {path: rank for path, rank in ranks.items() if rank}


class Factors(nn.Module):
    """A [r, in, …] and B [out, r, 1…] of every layer (Hu et al. 2021, arXiv:2106.09685); B begins at zero."""

    def __init__(self, unet: UNet2DConditionModel, ranks: Mapping[str, int]):
        super().__init__()
        self._paths = {path: path.replace(".", "/") for path in ranks}  # a parameter's name has no dots
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for path, rank in ranks.items():
            weight = unet.get_submodule(path).weight
            down = torch.empty(rank, *weight.shape[1:], device=weight.device)
            nn.init.normal_(down, std=1 / math.sqrt(down[0].numel()))
            self.down[self._paths[path]] = down
            self.up[self._paths[path]] = torch.zeros(weight.shape[0], rank, device=weight.device)

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W + B·A of every layer, by its weight's name."""
        return {
            f"{path}.weight": weights[f"{path}.weight"] + torch.tensordot(self.up[name], self.down[name], dims=1)
            for path, name in self._paths.items()
        }

    def save(self, path: Path) -> None:
        """In diffusers' format, float16."""
        tensors = {}
        for layer, name in self._paths.items():
            down, up = self.down[name].detach(), self.up[name].detach()
            tensors[f"unet.{layer}.lora_A.weight"] = down.to("cpu", torch.float16).contiguous()
            tensors[f"unet.{layer}.lora_B.weight"] = up.view(*up.shape, *[1] * (down.ndim - 2)).to("cpu", torch.float16)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})


class LookStage:
    def __init__(
        self,
        look: str,
        settings: Settings,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        pools: Sequence[Pool],
        device: torch.device,
    ):
        self.name = f"look-{look}"
        self._seed, self._batch, self._device = settings.seed, settings.looks.schedule.batch, device
        self._unet, self._text_encoder = unet.requires_grad_(False), text_encoder.requires_grad_(False)
        self._weights = dict(unet.named_parameters())
        self._pools = [one.to(device) for one in pools]
        self._denoising = Denoising(settings.denoiser, device)
        torch.manual_seed(settings.seed + 2)
        self.network = Factors(unet, targets(unet, settings.looks))

    def loss(self, step: int) -> Tensor:
        generator = step_generator(self._seed, self.name, step, self._device)
        rows = draw(self._pools, self._batch, step_generator(self._seed, f"{self.name} rows", step))
        with torch.no_grad():
            text = self._text_encoder(rows.tokens.long()).last_hidden_state
        merged = self.network.merged(self._weights)

        def predict(*arguments: Tensor) -> Tensor:
            return functional_call(self._unet, merged, arguments)

        return self._denoising.loss(predict, rows, text, generator)
