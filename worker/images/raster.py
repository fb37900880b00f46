"""A picture's samples as an array, at their own depth, and what belongs to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.decoder import Picture, Space

Samples = NDArray[np.uint8] | NDArray[np.uint16]

_BAND_PIXELS = 1 << 20
_LETTERS: dict[Space, str] = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}


@dataclass(frozen=True)
class Form:
    """How samples are kept: colour space, whether the last channel is alpha, and 8 or 16 bits a channel."""

    space: Space
    alpha: bool
    bits: int

    @property
    def channels(self) -> int:
        return len(_LETTERS[self.space]) + self.alpha

    @property
    def mode(self) -> str:
        """Pillow's name for it, without the depth."""
        return _LETTERS[self.space] + "A" * self.alpha

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def top(self) -> int:
        """The largest value of a channel."""
        return (1 << self.bits) - 1

    def __str__(self) -> str:
        return self.mode + ";16" * (self.bits == 16)


@dataclass(frozen=True)
class Raster:
    """`samples` [height, width, channels] in `form`; a straight alpha. `icc`, `exif` and `xmp` may be empty."""

    samples: Samples
    form: Form
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None

    @property
    def width(self) -> int:
        return int(self.samples.shape[1])

    @property
    def height(self) -> int:
        return int(self.samples.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def bands(top: int, bottom: int, width: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of pieces of about a megapixel."""
    rows = max(8, _BAND_PIXELS // max(1, width))
    for start in range(top, bottom, rows):
        yield start, min(start + rows, bottom)


def as_samples(strip: bytes | bytearray, width: int, form: Form) -> Samples:
    """Whole rows that a decoding process sent, without copying them."""
    return np.frombuffer(strip, "<u2" if form.bits == 16 else "u1").reshape(-1, width, form.channels)


def eight_bits(samples: Samples) -> NDArray[np.uint8]:
    """The nearest 8-bit value of each sample."""
    if samples.dtype == np.uint8:
        return samples
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def on_white(samples: Samples, form: Form) -> Samples:
    """The colours as they look on white, without the alpha; where nothing is transparent, the same samples."""
    if not form.alpha:
        return samples
    if int(samples[..., -1].min()) == form.top:
        return samples[..., :-1]
    alpha = samples[..., -1:].astype(np.float32) / form.top
    return np.rint(samples[..., :-1] * alpha + form.top * (1 - alpha)).astype(form.dtype)


def raster(picture: Picture) -> Raster:
    """What a decoding process sent. A transparent colour becomes an alpha channel, premultiplied colours straight."""
    header = picture.header
    form = Form(header.space, header.alpha, header.bits)
    samples = as_samples(picture.samples, header.width, form)
    if header.key is not None:
        opaque = (samples != np.array(header.key, form.dtype)).any(axis=-1, keepdims=True)
        samples = np.concatenate([samples, opaque.astype(form.dtype) * form.dtype(form.top)], axis=-1)
        form = Form(form.space, True, form.bits)
    elif header.premultiplied:
        straight = samples.copy()
        for top, bottom in bands(0, header.height, header.width):
            alpha = samples[top:bottom, :, -1:].astype(np.float64)
            colours = samples[top:bottom, :, :-1].astype(np.float64) * form.top / np.maximum(alpha, 1)
            straight[top:bottom, :, :-1] = np.rint(np.minimum(colours, form.top))
        samples = straight
    return Raster(samples, form, header.icc, header.exif, header.xmp, header.dpi)
