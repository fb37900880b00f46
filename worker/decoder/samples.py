"""A file's samples as it has them: their own space, alpha and depth, and the picture turned upright.

Pillow has no picture of three channels of 16 bits. It does unpack them, and takes the high byte of each; told that the
bytes stand the other way round it takes the low one. So such a file is decoded twice and gives all of its bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageFile

from farm.errors import ImageTruncated, UnsupportedImageFormat
from farm.image_structure import UNREADABLE, open_picture
from farm.pictures import PictureInfo
from worker.decoder.protocol import STRIP_BYTES, Space

_TURNS = {  # EXIF's orientation → what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SPACES: dict[str, tuple[Space, bool]] = {  # Pillow's mode → space, alpha
    "L": ("grey", False),
    "LA": ("grey", True),
    "RGB": ("rgb", False),
    "RGBA": ("rgb", True),
    "CMYK": ("cmyk", False),
}
_NATIVE = "B" if sys.byteorder == "big" else "L"
_OTHER = {"B": "L", "L": "B"}
_COMPLEMENT = bytes(range(255, -1, -1))


@dataclass
class Samples:
    """`images` hold the samples: one picture's bytes, or two pictures', the high bytes and the low ones.

    `swapped`: the bytes of 16 bits stand high first. `inverted`: 0 is white. `sideways`: the picture was turned by 90°.
    """

    space: Space
    alpha: bool
    bits: int
    images: tuple[Image.Image, ...]
    info: dict[str, Any]
    swapped: bool = False
    inverted: bool = False
    premultiplied: bool = False
    sideways: bool = False
    key: tuple[int, ...] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.images[0].size

    def strips(self) -> Iterator[bytes]:
        """Whole rows from the top, about 1 MB at a time; samples of 16 bits are little-endian."""
        width, height = self.size
        channels = {"grey": 1, "rgb": 3, "cmyk": 4}[self.space] + self.alpha
        rows = max(1, STRIP_BYTES // (width * channels * self.bits // 8))
        for top in range(0, height, rows):
            box = (0, top, width, min(top + rows, height))
            strip = self._strip([image.crop(box).tobytes() for image in self.images])
            yield strip.translate(_COMPLEMENT) if self.inverted else strip

    def _strip(self, parts: list[bytes]) -> bytes:
        if len(parts) == 1 and not self.swapped:
            return parts[0]
        high, low = parts if len(parts) == 2 else (parts[0][0::2], parts[0][1::2])
        strip = bytearray(2 * len(high))
        strip[0::2], strip[1::2] = low, high
        return bytes(strip)


def read(data: bytes, info: PictureInfo) -> Samples:
    """The samples of a file that `farm.pictures.probe` let through.

    Raises ImageTruncated for one that cannot be decoded, UnsupportedImageFormat for a kind that is not read here.
    """
    picture = open_picture(data, info.format)
    # Pillow turns a TIFF itself as it loads it; asked for a PNG's orientation, it loads that.
    before, warnings = _orientation(picture) if info.format == "TIFF" else (0, [])
    try:
        found = _deep(data, info, picture) if info.bits == 16 else _shallow(picture)
    except (*UNREADABLE, EOFError) as error:
        raise ImageTruncated(
            f"The {info.format} file cannot be decoded ({str(error)[:80]}); upload the whole file again."
        ) from None
    left, more = _orientation(picture)
    found.warnings = (warnings or more) + found.warnings
    if left in _TURNS:
        found.images = tuple(image.transpose(_TURNS[left]) for image in found.images)
    found.sideways = (before or left) in (5, 6, 7, 8)
    return found


def _orientation(picture: Image.Image) -> tuple[int, list[str]]:
    try:
        return int(picture.getexif().get(0x0112, 1)), []
    except UNREADABLE:
        return 1, ["Its EXIF block cannot be read: the picture is taken as it is stored, not turned."]


def _shallow(picture: ImageFile.ImageFile) -> Samples:
    """8 bits a channel, or fewer; a palette's colours are looked up."""
    picture.load()
    mode, clear = picture.mode, picture.has_transparency_data
    if mode in ("1", "L", "LA", "La"):
        wanted = "LA" if clear else "L"
    elif mode in ("P", "PA", "RGB", "RGBA", "RGBa", "YCbCr"):
        wanted = "RGBA" if clear else "RGB"
    elif mode == "CMYK":
        wanted = "CMYK"
    else:
        raise UnsupportedImageFormat(f"The picture's colours ({mode}) are not read here; save it as RGB.")
    space, alpha = _SPACES[wanted]
    image: Image.Image = picture
    if mode == "1" and clear:
        image = picture.convert("L")
        image.info["transparency"] = 255 * bool(picture.info["transparency"])
    if image.mode != wanted:
        image = image.convert(wanted)
    return Samples(space, alpha, 8, (image,), picture.info)


def _deep(data: bytes, info: PictureInfo, picture: ImageFile.ImageFile) -> Samples:
    """16 bits a channel."""
    raw = _rawmode(picture)
    if picture.mode in ("I;16", "I;16B"):
        picture._mode = "I;16"  # which unpacks either order of bytes
        picture.load()
        found = Samples("grey", False, 16, (picture,), picture.info)
    elif raw.startswith("LA") or (info.format == "TIFF" and raw == "RGBA"):
        swapped = picture.tile[0].codec_name != "libtiff" and (info.format == "PNG" or data[:2] == b"MM")
        _unpack(picture, "RGBA", "RGBA")  # two channels' four bytes, as they are
        picture.load()
        found = Samples("grey", True, 16, (picture,), picture.info, swapped=swapped)
    else:
        space, alpha = _SPACES[picture.mode]
        low = open_picture(data, info.format)
        kind, order = raw.replace("RGBa", "RGBA").split(";16")
        order = order.replace("N", _NATIVE)
        _unpack(picture, picture.mode, f"{kind};16{order}")
        _unpack(low, picture.mode, f"{kind};16{_OTHER[order]}")
        picture.load()
        low.load()
        found = Samples(space, alpha, 16, (picture, low), picture.info, premultiplied=raw.startswith("RGBa"))
    if info.format == "TIFF":
        found.inverted = getattr(picture, "tag_v2", {}).get(262) == 0
    key = picture.info.get("transparency")
    if key is not None and not found.alpha:
        found.key = tuple(key) if isinstance(key, tuple) else (int(key),)
    return found


def _rawmode(picture: ImageFile.ImageFile) -> str:
    args = picture.tile[0].args
    return args if isinstance(args, str) else str(args[0])


def _unpack(picture: ImageFile.ImageFile, mode: str, raw: str) -> None:
    """Have the picture's decoder unpack its bytes in another way than Pillow chose."""
    picture._mode = mode
    picture.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:])) for tile in picture.tile
    ]
