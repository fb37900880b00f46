"""The way out: latents to pictures, and the object that carries them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from worker.engine.errors import BlackOutput, InvalidParameter, NonFiniteOutput
from worker.engine.latents import repeat_rows
from worker.engine.noise import skip_sample
from worker.engine.request import Request


@dataclass
class StableDiffusionPipelineOutput:
    """`images`: a list of PIL images, or an array ``[N, H, W, 3]``, a tensor ``[N, 3, H, W]`` (both 0..1), or latents.

    `nsfw_content_detected`: one bool a picture, None without a safety checker or for latents. Also reads as a tuple
    (``output[0]``) and as a mapping (``output["images"]``), whose missing entries are those that are None.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    nsfw_content_detected: list[bool] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value for value in (self.images, self.nsfw_content_detected) if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return (
            {f.name: getattr(self, f.name) for f in fields(self)}[key] if isinstance(key, str) else self.to_tuple()[key]
        )

    def __len__(self) -> int:
        return len(self.to_tuple())


def require_finite(tensor: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise NonFiniteOutput(f"{what} NaN or Inf: try float32 or bfloat16, or another scheduler")
    return tensor


def require_painted(pictures: torch.Tensor) -> torch.Tensor:
    """`pictures` ``[N, 3, H, W]``, finite. A decoder never gives exactly zero everywhere, whatever it paints, black
    backdrops included; a device or a library that fails without a word does.
    """
    require_finite(pictures, "the VAE's pictures hold")
    if not pictures.flatten(1).any(dim=1).all():
        raise BlackOutput("the VAE's decoder gave nothing but zeros: try another seed, or the checkpoint in float32")
    return pictures


def decode(vae: Any, request: Request, at_once: int | None = None) -> torch.Tensor:
    """The request's pictures, ``[N, 3, H, W]`` in about −1..1, `at_once` of them in one forward (None: all).

    Raises NonFiniteOutput for NaN or Inf, BlackOutput for a picture of zeros, and InvalidParameter where the decoder
    has to look at a picture and there are only latents of it.
    """
    latents = require_finite(request.latents, "the UNet's latents hold") / vae.config.scaling_factor
    given = [latents] if request.pixels is None else [latents, *_seen(request)]
    parts = zip(*(tensor.split(at_once or len(latents)) for tensor in given), strict=True)
    return require_painted(torch.cat([vae.decode(*part) for part in parts]))


def _seen(request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and mask, N rows each, for a decoder that looks at them."""
    pixels, mask, rows = request.pixels, request.pixel_mask, len(request.latents)
    if pixels.shape[-2:] != mask.shape[-2:]:
        raise InvalidParameter("image", "has to be a picture, not latents, for a VAE whose decoder looks at it")
    # diffusers encodes the pictures once more here and makes no use of it, but for the numbers that it draws.
    skip_sample(len(pixels), request.latents.shape[1:], request.generator, pixels.device, pixels.dtype)
    return repeat_rows(pixels, rows, "image"), repeat_rows(mask, rows, "mask_image")


def decode_together(vae: Any, requests: Sequence[Request], at_once: int | None = None) -> list[torch.Tensor]:
    """`decode` of each; of several, which have latents of one shape and decoders that look at nothing, in one go."""
    if len(requests) == 1:
        return [decode(vae, requests[0], at_once)]
    latents = torch.cat([request.latents for request in requests])
    pictures = decode(vae, replace(requests[0], latents=latents), at_once)
    return list(pictures.split([len(request.latents) for request in requests]))
