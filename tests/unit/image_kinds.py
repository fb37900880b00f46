"""Pictures of every kind that is read, made here, each with the samples that it holds when it stands upright.

The expectation comes from the array that was written, or for what is stored with loss from a plain Pillow decode.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image, ImageOps

from tests.unit import icc_files
from tests.unit.picture_files import ADAM7, chunk, saved

WIDTH, HEIGHT = 61, 43
GPS = {1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 22.0, 30.0)}
DPI = (300, 200)


@dataclass(frozen=True)
class Kind:
    """`samples` [h, w, channels], upright, in `mode` (Pillow's) of 8 or 16 bits by their dtype.

    `exif`, `dpi`: it has the block with the GPS position, and the resolution, of this module. `sideways`: it is stored
    lying on its side.
    """

    data: bytes
    samples: np.ndarray
    mode: str
    icc: bytes = b""
    exif: bool = False
    dpi: bool = False
    sideways: bool = False


def values(channels: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Noise over a ramp, [h, w, channels]: every bit is used, and neighbours are alike enough for JPEG."""
    rng = np.random.default_rng(seed)
    top = (1 << bits) - 1
    ramp = np.linspace(0.1, 0.8, WIDTH * HEIGHT * channels).reshape(HEIGHT, WIDTH, channels)
    noise = rng.uniform(0, 0.15, ramp.shape)
    return np.rint((ramp + noise) * top).astype(np.uint8 if bits == 8 else np.uint16)


def exif(orientation: int = 1) -> bytes:
    block = Image.Exif()
    block[0x010F], block[0x0112], block[0x8298] = "Maker", orientation, "somebody"
    block.get_ifd(0x8825).update(GPS)
    block.get_ifd(0x8769).update({0xA002: WIDTH, 0xA003: HEIGHT, 0x927C: b"maker's note \0\1\2"})
    return block.tobytes()


def png16(samples: np.ndarray, colour: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG by hand, its rows unfiltered, in the depth of the samples."""
    height, width = samples.shape[:2]
    depth = samples.dtype.itemsize * 8
    big = samples.astype(">u2") if depth == 16 else samples
    rows = b""
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = big[y::dy, x::dx]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + data


def tiff(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples if samples.shape[-1] > 1 else samples[..., 0], metadata=None, **options)
    return buffer.getvalue()


def _pillow(mode: str, name: str, **options: object) -> Kind:
    """A file that Pillow writes without loss."""
    samples = values(len(mode))
    picture = Image.fromarray(samples[..., 0] if len(mode) == 1 else samples, mode)
    named = {key: options.pop(key) for key in ("icc", "exif", "dpi") if key in options}
    if "icc" in named:
        options["icc_profile"] = named["icc"]
    if "exif" in named:
        options["exif"] = exif()
    if "dpi" in named:
        options["dpi"] = DPI
    return Kind(saved(picture, name, **options), samples, mode, **named)


def _lossy(mode: str, name: str, orientation: int = 1, *, block: bool = True, **options: object) -> Kind:
    """A file whose samples are what Pillow decodes, turned upright."""
    samples = values(len(mode))
    icc = options.get("icc_profile", b"")
    picture = Image.fromarray(samples[..., 0] if len(mode) == 1 else samples, mode)
    if block:
        options["exif"] = exif(orientation)
    data = saved(picture, name, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = np.asarray(upright).reshape(upright.height, upright.width, -1)
    has_dpi, sideways = "dpi" in options, orientation > 4
    return Kind(data, found, upright.mode, icc, block, has_dpi, sideways)


def _palette(**options: object) -> Kind:
    picture = Image.fromarray(values(3)).quantize(40)
    data = saved(picture, "PNG", **options)
    mode = "RGBA" if "transparency" in options else "RGB"
    return Kind(data, np.asarray(Image.open(io.BytesIO(data)).convert(mode)), mode)


def _few_bits(bits: int) -> Kind:
    levels = values(1) >> (8 - bits)
    packed = Image.fromarray((levels[..., 0] * (255 // ((1 << bits) - 1))).astype(np.uint8))
    if bits == 1:
        return Kind(saved(packed.convert("1", dither=Image.Dither.NONE), "PNG"), levels * np.uint8(255), "L")
    grey = np.asarray(packed)[..., None]
    per_byte = 8 // bits
    filled = np.zeros((HEIGHT, -(-WIDTH // per_byte) * per_byte), np.uint8)
    filled[:, :WIDTH] = levels[..., 0]
    shifts = np.arange(per_byte)[::-1] * bits
    rows = (filled.reshape(HEIGHT, -1, per_byte) << shifts).sum(-1).astype(np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0))
    return Kind(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND"), grey, "L")


def _keyed(bits: int) -> Kind:
    samples = values(3, bits)
    samples[5:15, 5:25] = samples[20, 30]
    data = png16(samples, 2, before=chunk(b"tRNS", struct.pack(">3H", *samples[20, 30])))
    top = (1 << bits) - 1
    alpha = np.where((samples == samples[20, 30]).all(-1, keepdims=True), 0, top).astype(samples.dtype)
    return Kind(data, np.concatenate([samples, alpha], -1), "RGBA")


def _turned_png(orientation: int) -> Kind:
    samples = values(3)
    picture = ImageOps.exif_transpose(Image.fromarray(samples))
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    turned = Image.open(io.BytesIO(saved(picture, "PNG", exif=exif(undo))))
    stored = ImageOps.exif_transpose(turned)
    data = saved(Image.fromarray(np.asarray(stored)), "PNG", exif=exif(orientation), dpi=DPI)
    return Kind(data, samples, "RGB", exif=True, dpi=True, sideways=orientation > 4)


def _premultiplied(bits: int) -> Kind:
    """Every value is one that comes back whole: the alpha is 0 or full."""
    samples = values(4, bits)
    top = (1 << bits) - 1
    samples[..., 3] = np.where(np.arange(WIDTH) % 3, top, 0)
    samples[..., :3][samples[..., 3] == 0] = 0
    return Kind(tiff(samples, photometric="rgb", extrasamples=["assocalpha"]), samples, "RGBA")


def _icc_png16() -> Kind:
    samples = values(3, 16)
    profile = chunk(b"iCCP", b"wide\0\0" + zlib.compress(icc_files.WIDE))
    return Kind(png16(samples, 2, before=profile), samples, "RGB", icc_files.WIDE)


def _plain(writer: Callable[..., bytes], channels: int, mode: str, bits: int, *args: object, **options: object) -> Kind:
    samples = values(channels, bits)
    return Kind(writer(samples, *args, **options), samples, mode)


def _inverted() -> Kind:
    samples = values(1, 16)
    return Kind(tiff(65_535 - samples, photometric="miniswhite"), samples, "L")


STRAIGHT = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
GREY_ALPHA = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}

KINDS: dict[str, Kind] = {
    "PNG, RGB": _pillow("RGB", "PNG"),
    "PNG, RGB with EXIF and DPI": _pillow("RGB", "PNG", exif=True, dpi=True),
    "PNG, RGB with a profile": _pillow("RGB", "PNG", icc=icc_files.WIDE),
    "PNG, RGBA": _pillow("RGBA", "PNG"),
    "PNG, RGBA with a profile": _pillow("RGBA", "PNG", icc=icc_files.WIDE),
    "PNG, grey": _pillow("L", "PNG"),
    "PNG, grey with a profile": _pillow("L", "PNG", icc=icc_files.GREY),
    "PNG, grey with alpha": _pillow("LA", "PNG"),
    "PNG, palette": _palette(),
    "PNG, palette with a transparent colour": _palette(transparency=7),
    "PNG, palette with transparencies": _palette(transparency=bytes(range(0, 250, 10))),
    "PNG, 1 bit": _few_bits(1),
    "PNG, 2 bits": _few_bits(2),
    "PNG, 4 bits": _few_bits(4),
    "PNG, interlaced": _plain(png16, 3, "RGB", 8, 2, interlaced=True),
    "PNG, a transparent colour": _keyed(8),
    "PNG, 16 bits grey": _plain(png16, 1, "L", 16, 0),
    "PNG, 16 bits grey with alpha": _plain(png16, 2, "LA", 16, 4),
    "PNG, 16 bits RGB": _plain(png16, 3, "RGB", 16, 2),
    "PNG, 16 bits RGB, interlaced": _plain(png16, 3, "RGB", 16, 2, interlaced=True),
    "PNG, 16 bits RGB with a profile": _icc_png16(),
    "PNG, 16 bits RGBA": _plain(png16, 4, "RGBA", 16, 6),
    "PNG, 16 bits, a transparent colour": _keyed(16),
    **{f"PNG, orientation {n}": _turned_png(n) for n in (3, 6)},
    **{f"JPEG, orientation {n}": _lossy("RGB", "JPEG", n, dpi=DPI) for n in range(1, 9)},
    "JPEG with a profile": _lossy("RGB", "JPEG", icc_profile=icc_files.WIDE),
    "JPEG, grey": _lossy("L", "JPEG"),
    "JPEG, CMYK": _lossy("CMYK", "JPEG"),
    "JPEG, CMYK with a profile": _lossy("CMYK", "JPEG", icc_profile=icc_files.CMYK),
    "WebP": _lossy("RGB", "WEBP"),
    "WebP, orientation 8": _lossy("RGB", "WEBP", 8),
    "WebP without loss, with alpha": _pillow("RGBA", "WEBP", lossless=True, exact=True, exif=True),
    "AVIF": _lossy("RGB", "AVIF"),
    "AVIF, orientation 6": _lossy("RGB", "AVIF", 6),
    "AVIF with alpha and a profile": _lossy("RGBA", "AVIF", icc_profile=icc_files.WIDE),
    "AVIF, grey": _lossy("L", "AVIF"),
    "TIFF, RGB": _pillow("RGB", "TIFF", exif=True, dpi=True),
    "TIFF, RGB, LZW": _pillow("RGB", "TIFF", compression="tiff_lzw", dpi=True),
    "TIFF, RGB, big": _pillow("RGB", "TIFF", big_tiff=True),
    "TIFF, RGB, orientation 5": _lossy("RGB", "TIFF", 5),
    "TIFF, RGBA": _plain(tiff, 4, "RGBA", 8, **STRAIGHT),
    "TIFF, RGBA, premultiplied": _premultiplied(8),
    "TIFF, grey with alpha": _plain(tiff, 2, "LA", 8, **GREY_ALPHA),
    "TIFF, CMYK with a profile": _pillow("CMYK", "TIFF", icc=icc_files.CMYK),
    "TIFF, JPEG inside": _lossy("RGB", "TIFF", block=False, compression="jpeg"),
    "TIFF, 16 bits grey, big-endian": _plain(tiff, 1, "L", 16, byteorder=">"),
    "TIFF, 16 bits grey, white is 0": _inverted(),
    "TIFF, 16 bits grey with alpha": _plain(tiff, 2, "LA", 16, **GREY_ALPHA),
    "TIFF, 16 bits RGB": _plain(tiff, 3, "RGB", 16, photometric="rgb"),
    "TIFF, 16 bits RGB, big-endian, deflated": _plain(
        tiff, 3, "RGB", 16, photometric="rgb", byteorder=">", compression="zlib", predictor=True
    ),
    "TIFF, 16 bits RGBA, premultiplied": _premultiplied(16),
    "TIFF, 16 bits CMYK": _plain(tiff, 4, "CMYK", 16, photometric="separated"),
}
