"""PNG (https://www.w3.org/TR/png-3/) in 8 and 16 bits."""

from __future__ import annotations

import struct
import zlib

from imagecodecs import png_encode

from worker.images.raster import Samples

_LEVEL = 4  # a third of the time of zlib's own choice, for files a few hundredths larger
_HEADER_END = 8 + 25  # signature and IHDR
_METRE = 1 / 0.0254  # inches


def encoded(samples: Samples) -> bytes:
    """The plain file of [height, width] or [height, width, 2 to 4] samples."""
    return bytes(png_encode(samples, level=_LEVEL))


def with_blocks(data: bytes, *, icc: bytes, exif: bytes, xmp: bytes, dpi: tuple[float, float] | None) -> bytes:
    """The file with its colour profile, resolution, EXIF and XMP."""
    chunks = b""
    if icc:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(side * _METRE) for side in dpi), 1))
    if exif:
        chunks += _chunk(b"eXIf", exif)
    chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return data[:_HEADER_END] + chunks + data[_HEADER_END:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
