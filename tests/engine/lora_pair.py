"""The tiny models twice: with this engine's adapters, and as diffusers 0.42.1 and PEFT run them."""

import copy

import diffusers
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor

from tests.engine import lora_samples as samples
from worker.engine.lora import LoraAdapters

TOLERANCE = 1e-5
SAMPLE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
CONTEXT = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(6))
TOKENS = torch.tensor([[97, 5, 17, 98, 98], [97, 8, 98, 98, 98]])
TIMES = torch.tensor([7, 801])


class Oracle(StableDiffusionLoraLoaderMixin):
    """As much of a diffusers pipeline as its LoRA methods need, with the tiny models' weights."""

    hf_device_map = None

    def __init__(self):
        unet, self.text_encoder = samples.models()
        self.unet = diffusers.UNet2DConditionModel(**samples.UNET_CONFIG).eval()
        self.unet.load_state_dict(unet.state_dict())
        self.components = {"unet": self.unet, "text_encoder": self.text_encoder}
        self._merged_adapters = set()

    @torch.no_grad()
    def outputs(self, scale: float | None = None) -> tuple[Tensor, Tensor]:
        kwargs = None if scale is None else {"scale": scale}
        sample = self.unet(SAMPLE, TIMES, CONTEXT, cross_attention_kwargs=kwargs).sample
        return sample, self.text_encoder(TOKENS).last_hidden_state


class Ours:
    def __init__(self):
        self.unet, self.text_encoder = samples.models()
        self.lora = LoraAdapters(self.unet, self.text_encoder)
        self.base = self.outputs()

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, Tensor]:
        return self.unet(SAMPLE, TIMES, CONTEXT), self.text_encoder(TOKENS).last_hidden_state

    def is_base(self) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.outputs(), self.base, strict=True))


def assert_equal(ours: Ours, oracle: Oracle, scale: float | None = None) -> None:
    for found, expected in zip(ours.outputs(), oracle.outputs(scale), strict=True):
        assert samples.relative(found, expected) < TOLERANCE


def both(pair: tuple[Ours, Oracle], method: str, *args, **kwargs) -> None:
    """Call a method of both, each with its own copy of the arguments, since diffusers changes some."""
    getattr(pair[0].lora, method)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    getattr(pair[1], method)(*copy.deepcopy(args), **copy.deepcopy(kwargs))
