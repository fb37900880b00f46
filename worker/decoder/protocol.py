"""What a worker and its decoding processes say to each other: a line of JSON, then bytes.

A picture's samples travel as rows from the top, its channels interleaved, in 8 bits or in 16 (little-endian) as the
file has them. At 1 megapixel the way there and back costs some milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from farm.pictures import Format

Space = Literal["grey", "rgb", "cmyk"]

CHANNELS: dict[Space, int] = {"grey": 1, "rgb": 3, "cmyk": 4}
STRIP_BYTES = 1 << 20
_MOST_HEAD = 1 << 16


@dataclass(frozen=True)
class Header:
    """A decoded picture without its samples. It is upright: `width` and `height` (px) are those after turning.

    `icc` is a colour profile that both fits the picture and can be used, or empty; `exif` a TIFF-structured block whose
    orientation is reset, or empty; `xmp` a packet that names the picture's digital source type; `dpi` across and down.
    `premultiplied`: the colours are multiplied by the alpha. `key`: samples of the one colour that is transparent.
    """

    width: int
    height: int
    space: Space
    alpha: bool
    bits: int
    format: Format
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    premultiplied: bool = False
    key: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return CHANNELS[self.space] + self.alpha

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * self.bits // 8


@dataclass(frozen=True)
class Picture:
    """`samples`: height × row_bytes bytes."""

    header: Header
    samples: bytearray


BLOCKS = ("icc", "exif", "xmp")  # what follows a header's line as bytes


def send(pipe: BinaryIO, head: dict[str, Any], parts: Iterable[bytes] = ()) -> None:
    pipe.write(json.dumps(head).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_head(pipe: BinaryIO) -> dict[str, Any]:
    """Raises EOFError where there is none, ValueError for what is no head."""
    line = pipe.readline(_MOST_HEAD)
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("not a head")
    return head


def exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
