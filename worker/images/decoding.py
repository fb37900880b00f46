"""A job's picture and its mask, decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from farm.errors import InvalidInput, InvalidParameter, MaskEmpty, MaskSizeMismatch
from farm.pictures import misnamed
from farm.storage import shown
from worker import decoder
from worker.images import colour, masks
from worker.images.formats import losses
from worker.images.raster import Raster, eight_bits, on_white, raster

logger = logging.getLogger(__name__)

Progress = Callable[[], object]


@dataclass(frozen=True)
class Source:
    """A decoded job: `edits` is the mask as submitted. `beneath`: what is painted lies under the image, whose own
    transparency is the mask, and shows only as far as the image is transparent."""

    image: Raster
    edits: masks.Mask
    beneath: bool = False
    warnings: tuple[str, ...] = ()

    @cached_property
    def mask(self) -> Image.Image:
        """The submitted mask as a picture in mode L (not to be written to)."""
        return Image.frombuffer("L", self.image.size, self.edits, "raw", "L", 0, 1)


def decode(
    image: bytes, mask: bytes | None, *, polarity: str, max_pixels: int, image_name: str = "", mask_name: str = "",
    fill_holes: bool = False, output_format: str = "png", progress: Progress = lambda: None,
) -> Source:  # fmt: skip
    """Read an image and its mask, upright. Their names (or URIs) are only for the log.

    Without a mask the image's own transparency is what may change; with polarity `transparent_edits` the mask
    picture's. `output_format` tells which warnings there are to give, of what the format cannot hold. `progress` is
    called as strips of them arrive.
    Raises UnsupportedImageFormat, ImageTruncated, ImageTooLarge, ImageSizeOutOfRange, AnimatedImageUnsupported,
    MaskSizeMismatch, MaskEmpty, InvalidParameter.
    """
    picture, warnings = _open(image, "image", image_name, max_pixels, progress)
    warnings += losses(picture, output_format)
    if mask is None:
        _needs_alpha(picture, "image", "give a mask, or an image whose transparent part is to be painted")
        if fill_holes:  # the product is a hole in its surroundings
            raise InvalidParameter("fill_holes", "is for a mask of its own; without one the product itself would go")
        edits = masks.not_opaque(picture)
    else:
        drawn, more = _open(mask, "mask", mask_name, max_pixels, progress)
        warnings += more
        if drawn.size != picture.size:
            raise MaskSizeMismatch(
                f"The mask is {drawn.width}×{drawn.height} px and the image {picture.width}×{picture.height}; "
                "make the mask for this very image."
            )
        if polarity == "transparent_edits":
            _needs_alpha(drawn, "mask", "give a mask with an alpha channel, or another mask_polarity")
            edits = masks.transparent(drawn)
        else:
            edits = masks.drawn(drawn, black_edits=polarity == "black_edits")
        if fill_holes:
            edits = masks.filled(edits)
    if not edits.any():
        raise MaskEmpty("The mask selects nothing; paint white (or choose another mask_polarity) where to edit.")
    if edits.all():
        warnings += ("The mask keeps nothing: the whole picture is repainted.",)
    return Source(picture, edits, mask is None, warnings)


def decode_image(data: bytes, *, max_pixels: int, name: str = "") -> Image.Image:
    """A picture without a mask, upright and in sRGB, on white. Raises as `decode` does."""
    picture, _ = _open(data, "reference image", name, max_pixels, lambda: None)
    colours = eight_bits(on_white(picture.samples, picture.form))
    return Image.fromarray(colour.to_srgb(colours, picture.form, picture.icc), "RGB")


def _open(data: bytes, what: str, name: str, max_pixels: int, progress: Progress) -> tuple[Raster, tuple[str, ...]]:
    try:
        picture = decoder.shared.decode(data, max_pixels=max_pixels, progress=progress)
    except InvalidInput as error:
        raise type(error)(f"{what}: {error}") from None
    header = picture.header
    if misnamed(name, header.format):
        logger.warning("the %s %s is %s by its bytes, which count", what, shown(name), header.format)
    return raster(picture), tuple(f"{what}: {warning}" for warning in header.warnings)


def _needs_alpha(picture: Raster, what: str, cure: str) -> None:
    if not picture.form.alpha:
        raise InvalidParameter("mask", f"is missing and the {what} has no transparency: {cure}")
