"""What a file format can hold, and what becomes of a picture that it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farm.errors import InvalidParameter
from worker.decoder import Space
from worker.decoder.xmp import labelled
from worker.images import colour
from worker.images.raster import Form, Raster, Samples, eight_bits, on_white


@dataclass(frozen=True)
class Format:
    """`alpha`: the spaces that may have an alpha channel. At most `side` px, `exif` and `xmp` bytes."""

    name: str
    spaces: tuple[Space, ...]
    alpha: tuple[Space, ...]
    bits: int
    side: int = 1 << 31
    exif: int = 1 << 31
    xmp: int = 1 << 31


FORMATS = {
    "png": Format("PNG", ("grey", "rgb"), ("grey", "rgb"), 16),
    "jpeg": Format("JPEG", ("grey", "rgb", "cmyk"), (), 8, side=65_535, exif=65_527, xmp=65_502),
    "webp": Format("WebP", ("rgb",), ("rgb",), 8, side=16_383),
    "avif": Format("AVIF", ("grey", "rgb"), ("rgb",), 8, side=65_536),
    "tiff": Format("TIFF", ("grey", "rgb", "cmyk"), ("grey", "rgb"), 16),
}


def form_in(form: Form, output_format: str) -> Form:
    """The form that a picture of `form` is written in."""
    holds = FORMATS[output_format]
    alpha = form.alpha and bool(holds.alpha)
    space = form.space
    if space not in holds.spaces or (alpha and space not in holds.alpha):
        space = "rgb"
    return Form(space, alpha, 8 if form.space == "cmyk" != space else min(form.bits, holds.bits))


def losses(picture: Raster, output_format: str) -> tuple[str, ...]:
    """What of the picture the format cannot hold, in sentences. Raises InvalidParameter for one that is too large."""
    holds, form = FORMATS[output_format], picture.form
    if max(picture.size) > holds.side:
        raise InvalidParameter(
            "output_format", f"{holds.name} holds at most {holds.side:,} px a side; choose png or tiff"
        )
    kept, warnings = form_in(form, output_format), []
    if form.space == "cmyk" and kept.space != "cmyk":
        warnings.append(f"{holds.name} holds no CMYK: the picture is converted to sRGB; tiff and jpeg keep it.")
    elif picture.icc and kept.space != form.space:
        warnings.append(f"{holds.name} holds no grey of a profile's own: the picture is converted to sRGB.")
    if form.bits > kept.bits:
        warnings.append(f"{holds.name} holds 8 bits a channel: the picture's 16 are rounded; png and tiff keep them.")
    if form.alpha and not kept.alpha:
        warnings.append(f"{holds.name} holds no transparency: the picture is laid on white; png keeps it.")
    if len(picture.exif) > holds.exif:
        warnings.append(f"{holds.name} holds no EXIF block of this size: it is left out.")
    if len(picture.xmp) > holds.xmp:
        warnings.append(f"{holds.name} holds no XMP packet of this size: all but the digital source type is left out.")
    return tuple(warnings)


def blocks(picture: Raster, output_format: str) -> dict[str, bytes]:
    """`icc`, `exif` and `xmp` as they are written."""
    holds, kept = FORMATS[output_format], form_in(picture.form, output_format)
    return {
        "icc": picture.icc if kept.space == picture.form.space else b"",
        "exif": picture.exif if len(picture.exif) <= holds.exif else b"",
        "xmp": picture.xmp if len(picture.xmp) <= holds.xmp else labelled(b""),
    }


def convertible(form: Form, wanted: Form) -> bool:
    """Whether `fitted` can bring samples of one form into the other."""
    spaces = form.space == wanted.space or wanted.space == "rgb"
    return spaces and form.alpha >= wanted.alpha and form.bits >= wanted.bits


def fitted(strip: Samples, picture: Raster, wanted: Form) -> Samples:
    """Rows of the picture in the form that is wanted; every pixel by itself, so in strips as in one."""
    form = picture.form
    if form == wanted:
        return strip
    if wanted.bits < form.bits:
        strip, form = eight_bits(strip), Form(form.space, form.alpha, 8)
    if form.alpha and not wanted.alpha:
        strip, form = on_white(strip, form), Form(form.space, False, form.bits)
    if form.space != wanted.space:
        colours = strip[..., :-1] if form.alpha else strip
        if form.bits == 16:
            colours = np.repeat(colours, 3, axis=-1)  # only grey comes here in 16 bits, and without a profile
        else:
            colours = colour.to_srgb(colours, form, picture.icc)
        strip = np.concatenate([colours, strip[..., -1:]], axis=-1) if form.alpha else colours
    return strip
