"""What the VAE's encoder says of a picture, kept: a template is edited many times, a job's images are of one picture.

Kept is the distribution, never a sample of it: each image samples with a generator of its own, as it would alone.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from worker.engine.latents import latents_of
from worker.engine.noise import Generators
from worker.engine.vae import DiagonalGaussian


class PictureCache:
    """The last distributions, up to `max_bytes` of moments. Not for two threads."""

    def __init__(self, vae: Any, *, max_bytes: int = 64 * 1024**2):
        self._vae, self._max_bytes = vae, max_bytes
        self._kept: OrderedDict[bytes, DiagonalGaussian] = OrderedDict()
        self._bytes = 0

    @property
    def config(self) -> Any:
        return self._vae.config

    def encode(self, picture: torch.Tensor) -> DiagonalGaussian:
        """As the VAE's, of one picture ``[1, 3, H, W]``."""
        key = _digest(picture)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        return self._keep(key, self._vae.encode(picture))

    def missing(self, pictures: Iterable[torch.Tensor]) -> dict[bytes, torch.Tensor]:
        """Those of `pictures`, ``[1, 3, H, W]`` each, that are not kept; once each, for `encode_together`."""
        keyed = {_digest(picture): picture for picture in pictures}
        return {key: picture for key, picture in keyed.items() if key not in self._kept}

    def encode_together(self, missing: Mapping[bytes, torch.Tensor]) -> None:
        """Keep what one forward says of all of them, which are of one size."""
        moments = self._vae.encode(torch.cat(list(missing.values()))).moments
        for key, row in zip(missing, moments.split(1), strict=True):
            self._keep(key, DiagonalGaussian(row.clone()))  # as a view it would hold the whole batch's memory

    def _keep(self, key: bytes, made: DiagonalGaussian) -> DiagonalGaussian:
        self._kept[key] = made
        self._bytes += made.moments.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.moments.nbytes
        return made

    def latents_of(self, vae: Any, image: torch.Tensor, generator: Generators) -> torch.Tensor:
        """`latents.latents_of` of a call with a generator for each image; a call with one for all goes past."""
        return latents_of(self if isinstance(generator, list) else self._vae, image, generator)


def _digest(picture: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{picture.dtype} {tuple(picture.shape)}".encode())
    digest.update(picture.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()
