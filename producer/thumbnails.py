"""Small copies of pictures as `data:` addresses, so that a page needs no file beside it."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image, ImageOps, UnidentifiedImageError


class Thumbnail(NamedTuple):
    """`data` is a `data:` address; `width` and `height` are those of the whole picture in pixels."""

    data: str
    width: int
    height: int


def picture_thumbnail(source: str | bytes, side: int, *, quality: int = 78) -> Thumbnail | None:
    """The picture with its long side at most `side` pixels, as WebP; None if it cannot be read here.

    `source` is its address or its file's bytes.
    """
    picture = _open(source, side)
    if picture is None:
        return None
    size = picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return Thumbnail(_data(picture.convert("RGB"), "WEBP", quality=quality, method=4), *size)


def mask_thumbnail(uri: str, side: int) -> Thumbnail | None:
    """The mask at `uri`, black and white, as PNG; None if it cannot be read here."""
    mask = _open(uri, side)
    if mask is None:
        return None
    size, mask = mask.size, mask.convert("L")
    mask.thumbnail((side, side), Image.Resampling.BOX)
    return Thumbnail(_data(mask.point([0] * 128 + [255] * 128, "1"), "PNG", optimize=True), *size)


def local_path(uri: str) -> Path | None:
    """The file that `file:///absolute/path` means, taken as written; None for any other address."""
    path = Path(uri.removeprefix("file://"))
    return path if uri.startswith("file:///") and ".." not in path.parts else None


def link(uri: str, folder: Path) -> str | None:
    """Where a page in `folder` finds the whole picture: a relative address if it lies in the folder, else `uri`.

    None for what a browser cannot open (`s3://`) or must not be sent to.
    """
    path = local_path(uri)
    if path is None:
        return None
    if path.is_relative_to(folder):
        # `./`, since a first part like `a:b` would be read as a scheme
        return "./" + quote(path.relative_to(folder).as_posix())
    return path.as_uri()


def _open(source: str | bytes, side: int) -> Image.Image | None:
    file = BytesIO(source) if isinstance(source, bytes) else local_path(source)
    if file is None:
        return None
    try:
        with Image.open(file) as picture:
            picture.draft("RGB", (2 * side, 2 * side))
            return ImageOps.exif_transpose(picture)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None  # the page says that there is no picture; a page with a hole is worth more than none


def _data(picture: Image.Image, kind: str, **options: int | bool) -> str:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
