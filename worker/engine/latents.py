"""Everything that lives on the latent grid before the first step: start latents, image latents, masked-image latents.

The order of the random draws is part of the contract, since one generator feeds them all: image latents (a sample of
the encoder's posterior), then the start noise, then masked-image latents, then whatever the scheduler draws.
"""

from collections.abc import Callable
from typing import Any

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.noise import Generators

# (vae, pictures [B, 3, H, W] or latents, generators) → latents [B, C, h, w], scaled: `latents_of`, or one that caches.
Encode = Callable[[Any, torch.Tensor, Generators], torch.Tensor]


def encode_image(vae, image: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Scaled latents ``[B, C, h, w]`` of pictures ``[B, 3, H, W]`` in −1..1: a sample of the posterior
    (Kingma & Welling, arXiv:1312.6114), times the VAE's scaling factor.

    With a list of generators each picture is encoded on its own and sampled with its own generator.
    """
    if isinstance(generator, list):
        if len(generator) < len(image):
            raise InvalidParameter("generator", f"has {len(generator)} entries for {len(image)} images: give one each")
        sampled = [vae.encode(image[i : i + 1]).sample(generator[i]) for i in range(len(image))]
        latents = torch.cat(sampled)
    else:
        latents = vae.encode(image).sample(generator)
    # One memory layout whatever the picture's was, since a saved request resumes to the same bits only in the same one.
    return (vae.config.scaling_factor * latents).contiguous()


def latents_of(vae, image: torch.Tensor, generator: Generators) -> torch.Tensor:
    """`image` itself where it already has the latents' channels, else its encoding."""
    if image.shape[1] == vae.config.latent_channels:
        return image
    return encode_image(vae, image, generator)


def repeat_rows(tensor: torch.Tensor, rows: int, field: str) -> torch.Tensor:
    """Tile `tensor` along dimension 0 to `rows` rows.

    Raises InvalidParameter when `rows` is not a multiple of what there is.
    """
    if rows % len(tensor):
        raise InvalidParameter(
            field, f"holds {len(tensor)} entries, and {rows} images are asked for: the one must divide the other"
        )
    return tensor if len(tensor) == rows else tensor.repeat(rows // len(tensor), *[1] * (tensor.ndim - 1))
