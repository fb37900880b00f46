"""Pictures in and out: decode what was fetched, cut out the part to edit, paste it back, and measure the promise.

Three sizes meet here. The *source* is the picture as it was submitted. The *region* is the box of the source around
the mask that goes through the model. The *bucket* is the size that the region is resized to, one of a few, so that
jobs of different photos can share a step.

The mask is a promise: wherever the submitted mask is 0 the paste's alpha is 0. Growing it shapes only what the model
sees, and the feather runs inward.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from io import BytesIO
from math import log

from PIL import Image, ImageChops, ImageFilter, ImageOps

from farm.errors import (
    ImageTruncated,
    InvalidInput,
    InvalidParameter,
    MaskEmpty,
    MaskSizeMismatch,
    OutputExists,
    UnsupportedImageFormat,
)
from farm.image_structure import UNREADABLE
from farm.pictures import misnamed, open_picture, recognised
from farm.schemas import Receipt
from farm.storage import shown
from worker.decoder import Decoders, Picture

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # width, height in px
Box = tuple[int, int, int, int]  # left, top, right, bottom in px, right and bottom excluded


@dataclass(frozen=True)
class Source:
    """A decoded job: `image` in RGB, `mask` in mode L with 255 where the picture may change and 0 elsewhere."""

    image: Image.Image
    mask: Image.Image
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """What the model gets: the box's pixels and the grown mask, both at the bucket's size."""

    box: Box
    image: Image.Image
    mask: Image.Image


def decode(
    image: bytes, mask: bytes | None, *, polarity: str, max_pixels: int, image_name: str = "", mask_name: str = ""
) -> Source:
    """Read an image and its mask, applying EXIF orientation. Their names (or URIs) are only for the log.

    Without a mask, or with polarity `transparent_edits`, the transparent part of the image (or of the mask picture)
    is what may change. Raises UnsupportedImageFormat, ImageTruncated, ImageTooLarge, ImageSizeOutOfRange,
    AnimatedImageUnsupported, MaskSizeMismatch, MaskEmpty, InvalidParameter.
    """
    source = _open(image, "image", image_name, max_pixels)
    picture, warnings = source.image, source.warnings
    if mask is None:
        edits = _transparent(picture, "image", "give a mask, or an image whose transparent part is to be painted")
    else:
        read = _open(mask, "mask", mask_name, max_pixels)
        drawn, warnings = read.image, warnings + read.warnings
        if drawn.size != picture.size:
            raise MaskSizeMismatch(
                f"The mask is {drawn.width}×{drawn.height} px and the image {picture.width}×{picture.height}; "
                "make the mask for this very image."
            )
        if polarity == "transparent_edits":
            edits = _transparent(drawn, "mask", "give a mask with an alpha channel, or another mask_polarity")
        else:
            edits = drawn.convert("L").point(lambda v: 255 if v >= 128 else 0)
            if polarity == "black_edits":
                edits = ImageOps.invert(edits)
    low, high = edits.getextrema()
    if high == 0:
        raise MaskEmpty("The mask selects nothing; paint white (or choose another mask_polarity) where to edit.")
    if low == 255:
        warnings += ("The mask keeps nothing: the whole picture is repainted.",)
    if mask is not None and picture.mode == "RGBA":
        warnings += ("The image's transparency is not kept: the picture is written without an alpha channel.",)
    return Source(picture.convert("RGB"), edits, warnings)


def decode_image(data: bytes, *, max_pixels: int, name: str = "") -> Image.Image:
    """A picture without a mask, upright and in RGB. Raises as `decode` does."""
    return _open(data, "reference image", name, max_pixels).image.convert("RGB")


_decoders = Decoders()


def _open(data: bytes, what: str, name: str, max_pixels: int) -> Picture:
    try:
        picture = _decoders.decode(data, max_pixels=max_pixels)
    except InvalidInput as error:
        raise type(error)(f"{what}: {error}") from None
    if misnamed(name, picture.format):
        logger.warning("the %s %s is %s by its bytes, which count", what, shown(name), picture.format)
    return Picture(picture.image, picture.format, tuple(f"{what}: {warning}" for warning in picture.warnings))


def _transparent(picture: Image.Image, what: str, cure: str) -> Image.Image:
    if picture.mode != "RGBA":
        raise InvalidParameter("mask", f"is missing and the {what} has no transparency: {cure}")
    return picture.getchannel("A").point(lambda v: 255 if v < 128 else 0)


def choose_bucket(buckets: tuple[Size, ...], region: Size) -> Size:
    """The bucket nearest to the region in shape; among equals the smallest that does not shrink it, or the largest."""
    width, height = region

    def cost(bucket: Size) -> tuple[float, bool, int]:
        w, h = bucket
        shrinks = w < width and h < height
        return (round(abs(log(w / h) - log(width / height)), 2), shrinks, -w * h if shrinks else w * h)

    return min(buckets, key=cost)


def edit_box(mask: Image.Image, padding: int | None) -> Box:
    """The mask's bounding box with `padding` px around it, inside the picture; None: the whole picture."""
    if padding is None:
        return (0, 0, *mask.size)
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )


def widen(box: Box, shape: Size, limits: Size) -> Box:
    """`box` made larger towards the proportions of `shape`, as far as a picture of size `limits` allows."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    want_width = min(max(width, round(height * shape[0] / shape[1])), limits[0])
    want_height = min(max(height, round(width * shape[1] / shape[0])), limits[1])
    left = min(max(left - (want_width - width) // 2, 0), limits[0] - want_width)
    top = min(max(top - (want_height - height) // 2, 0), limits[1] - want_height)
    return (left, top, left + want_width, top + want_height)


def cut(source: Source, bucket: Size, *, padding: int | None, grow: int) -> Region:
    """The region of `source` around its mask at `bucket` size; the mask grown by `grow` px of that size."""
    box = widen(edit_box(source.mask, padding), bucket, source.image.size)
    image = source.image.crop(box).resize(bucket, Image.Resampling.LANCZOS)
    # A bucket pixel that holds part of an edited source pixel is edited: a thin mask does not vanish.
    mask = source.mask.crop(box).resize(bucket, Image.Resampling.BOX).point(lambda v: 255 if v > 0 else 0)
    for _ in range(grow):
        mask = mask.filter(ImageFilter.MaxFilter(3))
    return Region(box, image, mask)


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """Paste alpha: 0 outside `mask`, rising inward over `pixels` px of chessboard distance to 255.

    Alpha at distance d from the outside is 255·min(d, pixels)/pixels, the mean of that many erosions; a mask thinner
    than the feather is still edited, only less.
    """
    if pixels <= 1:
        return mask
    alpha, eroded = (
        Image.new("L", mask.size, 0),
        mask,
    )  # Pillow's filters repeat the picture's edge: no seam, no feather
    for step in range(1, pixels + 1):
        value = 255 * step // pixels
        alpha = ImageChops.lighter(alpha, eroded.point(lambda v, value=value: value if v else 0))
        eroded = eroded.filter(ImageFilter.MinFilter(3))
    return alpha


def paste(source: Source, region: Region, painted: Image.Image, *, feather_px: int, preserve: bool) -> Image.Image:
    """The source with `painted` (bucket-sized) in its place. Pixels outside the submitted mask are the source's own.

    With `preserve` off the whole region is replaced, as diffusers does.
    """
    left, top, right, bottom = region.box
    patch = painted.convert("RGB").resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    out = source.image.copy()
    if not preserve:
        out.paste(patch, (left, top))
        return out
    # The feather is drawn with a margin, so that it knows what lies beyond the region's edge.
    around = (max(left - feather_px, 0), max(top - feather_px, 0), right + feather_px, bottom + feather_px)
    around = (*around[:2], min(around[2], out.width), min(around[3], out.height))
    alpha = feather(source.mask.crop(around), feather_px)
    alpha = alpha.crop((left - around[0], top - around[1], right - around[0], bottom - around[1]))
    out.paste(patch, (left, top), alpha)
    return out


_SAVE = {
    "png": {"format": "PNG", "compress_level": 4},
    "jpeg": {"format": "JPEG", "subsampling": 0},
    "webp": {"format": "WEBP", "method": 4},
}
CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def encode(image: Image.Image, output_format: str, quality: int) -> bytes:
    """The picture's file. `quality` 1–100 is JPEG's and WebP's; WebP at 100 is lossless."""
    options = dict(_SAVE[output_format])
    if output_format != "png":
        options["quality"] = quality
    if output_format == "webp" and quality == 100:
        options["lossless"] = True
    buffer = BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def receipt(source: Source, written: bytes) -> Receipt:
    """Decode what was written and compare it with the source outside the submitted mask.

    Raises OutputExists when what lies there is not what was written: somebody else's picture, or none.
    """
    try:
        out: Image.Image = open_picture(written, recognised(written))
        if out.size != source.image.size:
            raise OutputExists("The picture at the output is not this job's: its size differs; choose another output.")
        out = out.convert("RGB")
    except (UnsupportedImageFormat, ImageTruncated, *UNREADABLE):
        raise OutputExists("What lies at the output is not this job's picture; choose another output.") from None
    outside = ImageOps.invert(source.mask)
    difference = Image.new("RGB", out.size)
    difference.paste(ImageChops.difference(out, source.image), mask=outside)
    worst = max(high for _, high in difference.getextrema())
    return Receipt(max_abs_diff_outside=worst, pixels_outside=outside.histogram()[255])
