"""Colour profiles (ICC.1:2022), by littleCMS: from a picture's own colours to sRGB and back.

Relative colorimetric with black point compensation: what both spaces can show stays what it is.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms

from worker.decoder.protocol import Space

UNUSABLE = (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, LookupError)
"""What comes of a profile that is none, or one of another kind of picture."""

_KINDS: dict[Space, tuple[str, str]] = {"grey": ("GRAY", "L"), "rgb": ("RGB ", "RGB"), "cmyk": ("CMYK", "CMYK")}


@lru_cache(maxsize=8)
def _transform(icc: bytes, space: Space, to_srgb: bool) -> ImageCms.ImageCmsTransform:
    kind, mode = _KINDS[space]
    own = ImageCms.ImageCmsProfile(BytesIO(icc))
    if own.profile.xcolor_space.strip() != kind.strip():
        raise ValueError("a profile of other colours")
    srgb = ImageCms.createProfile("sRGB")
    ends = ((own, mode), (srgb, "RGB")) if to_srgb else ((srgb, "RGB"), (own, mode))
    return ImageCms.buildTransform(
        ends[0][0],
        ends[1][0],
        ends[0][1],
        ends[1][1],
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def usable(icc: bytes, space: Space) -> bool:
    """Whether pictures of `space` can be converted both ways by this profile."""
    try:
        return all(_transform(icc, space, to_srgb) is not None for to_srgb in (True, False))
    except UNUSABLE:
        return False


def converted(pixels: bytes, size: tuple[int, int], icc: bytes, space: Space, *, to_srgb: bool) -> bytes:
    """Pixels of 8 bits a channel, without alpha. Raises one of UNUSABLE."""
    transform = _transform(icc, space, to_srgb)
    mode = _KINDS[space][1] if to_srgb else "RGB"
    result = ImageCms.applyTransform(Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1), transform)
    return result.tobytes()
