"""TIFF 6.0, deflated (Adobe's supplement of 2002) with horizontal differences, in 8 and 16 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction

from worker.decoder import exif as exif_tables
from worker.images.raster import Form, Samples

_LEVEL = 4
_SHORT, _LONG, _RATIONAL, _BYTE, _UNDEFINED = 3, 4, 5, 1, 7
_PHOTOMETRIC = {"grey": 1, "rgb": 2, "cmyk": 5}
_ADOBE_DEFLATE, _DIFFERENCES, _STRAIGHT_ALPHA, _INCHES = 8, 2, 2, 2


def encoded(
    strips: Iterable[Samples], size: tuple[int, int], form: Form, *, icc: bytes, exif: bytes, xmp: bytes,
    dpi: tuple[float, float] | None,
) -> bytes:  # fmt: skip
    """The file of a picture that comes in strips, from the top, all but the last of the same height.

    It takes the byte order of the EXIF block, whose tables become the file's own.
    """
    order = exif_tables.byte_order(exif) if exif else "<"
    file = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    offsets, lengths, rows = [], [], 0
    for strip in strips:
        data = zlib.compress(_differences(strip).astype(strip.dtype.newbyteorder(order)).tobytes(), _LEVEL)
        offsets.append(len(file))
        lengths.append(len(data))
        rows = rows or len(strip)
        file += data + b"\0" * (len(data) % 2)
    struct.pack_into(order + "I", file, 4, len(file))

    def numbers(kind: int, *values: int) -> tuple[int, int, bytes]:
        return kind, len(values), struct.pack(order + {_SHORT: "H", _LONG: "I"}[kind] * len(values), *values)

    table = exif_tables.read(exif) if exif else exif_tables.Table()
    table.entries = {tag: entry for tag, entry in table.entries.items() if tag not in exif_tables.STRUCTURE}
    table.entries |= {
        256: numbers(_LONG, size[0]),
        257: numbers(_LONG, size[1]),
        258: numbers(_SHORT, *[form.bits] * form.channels),
        259: numbers(_SHORT, _ADOBE_DEFLATE),
        262: numbers(_SHORT, _PHOTOMETRIC[form.space]),
        273: numbers(_LONG, *offsets),
        277: numbers(_SHORT, form.channels),
        278: numbers(_LONG, rows),
        279: numbers(_LONG, *lengths),
        284: numbers(_SHORT, 1),
        317: numbers(_SHORT, _DIFFERENCES),
        700: (_BYTE, len(xmp), xmp),
    }
    if form.alpha:
        table.entries[338] = numbers(_SHORT, _STRAIGHT_ALPHA)
    if dpi:
        for tag, side in zip((282, 283), dpi, strict=True):
            ratio = Fraction(side).limit_denominator(10_000)
            table.entries[tag] = (_RATIONAL, 1, struct.pack(order + "II", ratio.numerator, ratio.denominator))
        table.entries[296] = numbers(_SHORT, _INCHES)
    if icc:
        table.entries[34675] = (_UNDEFINED, len(icc), icc)
    return bytes(file + exif_tables.laid(table, order, len(file)))


def _differences(strip: Samples) -> Samples:
    """Each sample less the one to its left, modulo its depth."""
    result = strip.copy()
    result[:, 1:] -= strip[:, :-1]
    return result
