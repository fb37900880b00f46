"""Picture files judged without decoding them, by the client and by the worker alike.

The first bytes decide what a file is, never its name, and only five formats go on. The size is read from the header
and refused before a pixel is decoded; then the file is checked to be whole (`image_structure.py`), because Pillow fills
in what is missing and says nothing. What follows the picture in the file (a ZIP, say) does not matter: only decoded
pixels are used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from farm.errors import (
    AnimatedImageUnsupported,
    ImageSizeOutOfRange,
    ImageTooLarge,
    UnsupportedImageFormat,
)
from farm.image_structure import CHECKS, Format, open_picture

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "MIN_SIDE",
    "Format",
    "PictureInfo",
    "misnamed",
    "open_picture",
    "probe",
    "recognised",
]

MIN_SIDE = 16  # px: less is no photo, and less than two latent pixels
MAX_SIDE = 32_768  # px
MAX_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A still picture's header. `width` and `height` in px as stored, before EXIF turns it; `mode` is Pillow's;
    `bits` a channel, as stored."""

    format: Format
    width: int
    height: int
    mode: str
    bits: int


_MAGIC: tuple[tuple[Format, re.Pattern[bytes]], ...] = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("TIFF", re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]")),
    ("AVIF", re.compile(rb"....ftypavi[fs]|....ftypmi[af]1.{4,52}?avif", re.DOTALL)),
)
_STRANGERS = (
    ("a GIF", re.compile(rb"GIF8")),
    ("a PDF", re.compile(rb"%PDF")),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("a Photoshop document", re.compile(rb"8BPS")),
    ("a BMP", re.compile(rb"BM.{4}\0{4}", re.DOTALL)),
    ("an icon", re.compile(rb"\x00\x00\x01\x00")),
    ("a JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("a JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("a HEIC", re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL)),
    ("a video", re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)),
    ("a ZIP archive", re.compile(rb"PK[\3\5]")),
    ("an SVG", re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{,400}?)?(?:<!--.{,400}?-->\s*)?<svg", re.DOTALL | re.I)),
    ("an HTML page", re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body)", re.I)),
    ("XML", re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml", re.I)),
    ("text", re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]{8,}")),
)


_ENDINGS: dict[str, Format] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **{".png": "PNG", ".webp": "WEBP", ".avif": "AVIF"},
}


def misnamed(name: str, is_really: Format) -> bool:
    """Whether the end of a file's name or URI promises a picture of another format. It does not matter to anything."""
    return _ENDINGS.get(PurePosixPath(name).suffix.lower(), is_really) != is_really


def probe(
    data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE, max_side: int = MAX_SIDE
) -> PictureInfo:
    """What the file holds, if it is a whole still picture of an allowed size.

    Raises UnsupportedImageFormat, ImageTooLarge (more than `max_pixels`), ImageSizeOutOfRange (a side outside
    `min_side` to `max_side`), AnimatedImageUnsupported, ImageTruncated.

    A PNG's data is inflated to count its rows, 1 MB at a time and never more than its size promises. A JPEG is known
    to have an end, not to have every block before it: bytes missing from its middle only decoding can tell.
    """
    name = recognised(data)

    def judge(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise ImageTooLarge(f"The picture is {width:,}×{height:,} px; at most {max_pixels:,} px are allowed.")
        if not min_side <= min(width, height) <= max(width, height) <= max_side:
            raise ImageSizeOutOfRange(
                f"The picture is {width:,}×{height:,} px; each side must have {min_side} to {max_side:,} px."
            )

    bits = CHECKS[name](data, judge)
    picture = open_picture(data, name)
    judge(*picture.size)
    if getattr(picture, "is_animated", False):
        raise AnimatedImageUnsupported("The file holds several pictures; send the one to edit by itself.")
    return PictureInfo(name, *picture.size, picture.mode, bits)


def recognised(data: bytes) -> Format:
    """The format by the first bytes. Raises UnsupportedImageFormat."""
    start = data[:1024]
    for name, magic in _MAGIC:
        if magic.match(start):
            return name
    looks = next((what for what, magic in _STRANGERS if magic.match(start)), "no picture that is read here")
    raise UnsupportedImageFormat(f"The file is {looks if data else 'empty'}; send PNG, JPEG, WebP, AVIF or TIFF.")
