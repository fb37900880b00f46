"""Stable Diffusion with random weights in three sizes, once for this engine and once for diffusers, on equal weights.

`full` is SD 1.5's inpainting UNet to the last width. `small` is its topology (four levels, two blocks each, cross
attention of 768) at a width of 32 instead of 320, the least that its norms allow: at 64 px its swap ÷ step on a CPU is
about an H200's, since there, too, arithmetic is short beside what every swap costs whatever the width. `toy` is for
tests.

What an H200 does in float16, from its data sheet (4.8 TB/s) and a GEMM ceiling of 730 TFLOP/s:

    a step      SD 1.5, 512², two rows: 1.61 TFLOP are 2.2 ms at the ceiling, 3.7 ms at the 60 % that a UNet reaches
    our swap    93.5 M weights of 128 attention layers read and written are 0.08 ms, the rest launches; ≤ 2 ms wanted
    hotswap     55-67 ms on a host, since it is Python that takes its time: bound by the host on a GPU as well

so swap ÷ step is at most 0.55 for us and about 16 for the peer, who has it easier on a CPU. `new_lora_jobs` prints both
as they are where it runs.
VAE and text encoder are tiny in every size: what is compared are steps and swaps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.engine import tiny_checkpoints
from worker.engine import StableDiffusionInpaintPipeline, schedulers
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL

_SD15 = {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8}
SIZES: dict[str, dict[str, Any]] = {
    "full": _SD15,
    "small": {**_SD15, "block_out_channels": (32, 64, 128, 128)},
    "toy": {**tiny_checkpoints.UNET, **tiny_checkpoints.KINDS["inpaint"]},
}
H200_STEP_SECONDS = 1.607e12 / (0.6 * 730e12)
H200_SWAP_SECONDS = 2e-3  # what is wanted; the memory alone takes 0.08 ms


@dataclass(frozen=True)
class Topology:
    """The weights of one size, and pipelines on them."""

    size: str
    seed: int
    device: str
    dtype: torch.dtype

    @cached_property
    def _unet(self) -> diffusers.UNet2DConditionModel:
        torch.manual_seed(self.seed)
        return diffusers.UNet2DConditionModel(**SIZES[self.size]).eval().to(self.device, self.dtype)

    @cached_property
    def _others(self) -> tuple[nn.Module, CLIPTextModel]:
        """diffusers' VAE and the text encoder."""
        torch.manual_seed(self.seed + 1)
        width = SIZES[self.size]["cross_attention_dim"]
        marks = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1}
        text = CLIPTextModel(CLIPTextConfig(**shape, **marks, num_attention_heads=4, max_position_embeddings=77))
        return tiny_checkpoints.vae("inpaint").to(self.device, self.dtype), text.eval().to(self.device, self.dtype)

    @property
    def unet_config(self) -> Mapping[str, Any]:
        return self._unet.config

    def our_unet(
        self, *, own_memory: bool = True, layout: torch.memory_format = torch.contiguous_format
    ) -> UNet2DConditionModel:
        """With memory of its own, as is needed where LoRAs are merged into it; or as `their_unet` without."""
        return UNet2DConditionModel.from_weights(self._unet.config, self._weights(own_memory, layout), None)

    def ours(self) -> StableDiffusionInpaintPipeline:
        vae, text_encoder = self._others
        scheduler = schedulers.from_config({"_class_name": "DDIMScheduler", **tiny_checkpoints.SCHEDULER})
        pipe = StableDiffusionInpaintPipeline(
            vae=AutoencoderKL.from_weights(vae.config, vae.state_dict(), None),
            text_encoder=copy.deepcopy(text_encoder),
            tokenizer=tiny_checkpoints.tokenizer(),
            unet=self.our_unet(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def their_unet(self, *, own_memory: bool, layout: torch.memory_format) -> diffusers.UNet2DConditionModel:
        """In evaluation mode. Without memory of its own it shares the weights of all others of its layout."""
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel(**SIZES[self.size])
        unet.load_state_dict(self._weights(own_memory, layout), assign=True)
        return unet.eval().requires_grad_(False)

    def _weights(self, own_memory: bool, layout: torch.memory_format) -> dict[str, Tensor]:
        """A change of layout leaves those who share the one before with what they have, so ask for each once."""
        weights = self._unet.to(memory_format=layout).state_dict()
        return {name: tensor.clone() if own_memory else tensor for name, tensor in weights.items()}

    def theirs(
        self, *, own_memory: bool = False, layout: torch.memory_format = torch.contiguous_format
    ) -> diffusers.StableDiffusionInpaintPipeline:
        vae, text_encoder = self._others
        pipe = diffusers.StableDiffusionInpaintPipeline(
            vae=vae,
            text_encoder=copy.deepcopy(text_encoder),
            tokenizer=tiny_checkpoints.tokenizer(),
            unet=self.their_unet(own_memory=own_memory, layout=layout),
            scheduler=diffusers.DDIMScheduler(**tiny_checkpoints.SCHEDULER),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def attention_layers(unet: nn.Module, targets: str = "attention") -> dict[str, tuple[int, ...]]:
    """The shapes of the layers that a LoRA touches, by name: queries, keys, values and outputs, or all of them."""
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    return {
        name: tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and (targets == "all" or name.endswith(ends))
    }
