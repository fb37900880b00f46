"""What a worker would say of a job's files, said by a client: the same checks of the same bytes, the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from PIL import Image, ImageOps

from farm.errors import (
    CheckpointInvalid,
    EmbeddingInvalid,
    ImageTruncated,
    InputNotFound,
    InvalidInput,
    InvalidParameter,
    LoraHashMismatch,
    LoraInvalid,
    LoraNonFinite,
    LoraNotFound,
    MaskEmpty,
    MaskSizeMismatch,
)
from farm.image_structure import UNREADABLE
from farm.pictures import open_picture, probe, recognised
from farm.schemas import EmbeddingRef, IpAdapterRef, LoraRef
from farm.storage import ObjectStore
from farm.weights import Header, read_header, refuse_non_finite, refuse_pickle

Size = tuple[int, int]  # width, height in px
WeightsRef = LoraRef | EmbeddingRef | IpAdapterRef

# What a file that is none of its kind is told to be.
INVALID: Final[Mapping[type, type[InvalidInput]]] = {
    LoraRef: LoraInvalid, EmbeddingRef: EmbeddingInvalid, IpAdapterRef: CheckpointInvalid,
}  # fmt: skip

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap width and height


@dataclass(frozen=True)
class Inspected:
    """A decoded job: `image` upright in RGB; `edits` in mode L, 255 where the picture may change and 0 elsewhere."""

    image: Image.Image
    edits: Image.Image
    warnings: tuple[str, ...] = ()


def inspect(image: bytes, mask: bytes | None, *, polarity: str, max_pixels: int, fill_holes: bool = False) -> Inspected:
    """Judge and decode a job's picture and its mask (None: the picture's own transparency). Holes are not filled.

    Raises UnsupportedImageFormat, ImageTruncated, ImageTooLarge, ImageSizeOutOfRange, AnimatedImageUnsupported,
    MaskSizeMismatch, MaskEmpty, InvalidParameter.
    """
    picture = decoded(image, "image", max_pixels)
    edits = edits_of(picture, mask, polarity=polarity, max_pixels=max_pixels, fill_holes=fill_holes)
    return Inspected(picture.convert("RGB"), *edits)


def edits_of(
    picture: Image.Image | Size, mask: bytes | None, *, polarity: str, max_pixels: int, fill_holes: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """Where a picture (or one of that size, if there is a mask) may change, and warnings. Raises as `inspect`."""
    size = picture.size if isinstance(picture, Image.Image) else picture
    if mask is None:
        assert isinstance(picture, Image.Image), "only the picture itself has transparency"
        cure = "give a mask, or an image whose transparent part is to be painted"
        edits = _below(255, picture, "image", cure)  # all that anything shines through: soft edges and shadows, too
        if fill_holes:
            raise InvalidParameter("fill_holes", "is for a mask of its own; without one the product itself would go")
    else:
        drawn = decoded(mask, "mask", max_pixels)
        check_size(drawn.size, size)
        if polarity == "transparent_edits":
            edits = _below(128, drawn, "mask", "give a mask with an alpha channel, or another mask_polarity")
        else:
            edits = drawn.convert("L").point(lambda value: 255 if value >= 128 else 0)
            if polarity == "black_edits":
                edits = ImageOps.invert(edits)
    least, most = edits.getextrema()
    if most == 0:
        raise MaskEmpty("The mask selects nothing; paint white (or choose another mask_polarity) where to edit.")
    keeps_nothing = "The mask keeps nothing: the whole picture is repainted."
    return edits, (keeps_nothing,) if least == 255 else ()


def check_size(mask: Size, image: Size) -> None:
    """Raises MaskSizeMismatch."""
    if mask != image:
        raise MaskSizeMismatch(
            f"The mask is {mask[0]}×{mask[1]} px and the image {image[0]}×{image[1]}; "
            "make the mask for this very image."
        )


def decoded(data: bytes, what: str, max_pixels: int) -> Image.Image:
    """The picture in `data`, upright, in 8 bits a channel. `what` begins an error's message."""
    try:
        name = probe(data, max_pixels=max_pixels).format
        picture: Image.Image = open_picture(data, name)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    except InvalidInput as error:
        raise type(error)(f"{what}: {error}") from None
    except UNREADABLE as error:
        raise ImageTruncated(f"{what}: The file cannot be decoded ({type(error).__name__}); send it again.") from None
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 255
        picture = picture.point(lambda value: value / 256).convert("L")
    return picture


def size_of(data: bytes, what: str, max_pixels: int) -> Size:
    """The size of a picture upright, judged from the whole file without decoding it. Raises as `probe` does."""
    try:
        probe(data, max_pixels=max_pixels)
        return _upright(open_picture(data, recognised(data)))
    except InvalidInput as error:
        raise type(error)(f"{what}: {error}") from None


def size_at_start(start: bytes) -> Size | None:
    """The size of a picture upright, told by the first part of its file; None where that part does not tell it."""
    try:
        return _upright(open_picture(start, recognised(start)))
    except (InvalidInput, *UNREADABLE):
        return None


def _upright(picture: Image.Image) -> Size:
    width, height = picture.size
    try:
        turned = picture.getexif().get(_ORIENTATION) in _TURNED
    except UNREADABLE:
        turned = False
    return (height, width) if turned else (width, height)


def _below(level: int, picture: Image.Image, what: str, cure: str) -> Image.Image:
    """Where a picture's alpha is less than `level`."""
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if alpha is None:
        raise InvalidParameter("mask", f"is missing and the {what} has no transparency: {cure}")
    return alpha.point(lambda value: 255 if value < level else 0)


def weights(store: ObjectStore, ref: WeightsRef, *, max_bytes: int) -> tuple[str, Header]:
    """A weights file read whole and judged by itself, as before its model is asked: its sha256 and its header.

    Raises UnsafeWeightsFormat, LoraNotFound, LoraHashMismatch, LoraNonFinite, INVALID's error for its kind, and what
    the store raises.
    """
    refuse_pickle(ref.path)
    try:
        data = store.get(ref.path, max_bytes=max_bytes).data
    except InputNotFound:
        raise LoraNotFound(f"There is no weights file at {ref.path}; check the address.") from None
    digest, invalid = sha256(data).hexdigest(), INVALID[type(ref)]
    if ref.sha256 not in (None, digest):
        raise LoraHashMismatch(f"The file at {ref.path} has sha256 {digest}, the job wants {ref.sha256}.")
    header = read_header(data, invalid=invalid)
    refuse_non_finite(data, header, invalid=LoraNonFinite if invalid is LoraInvalid else invalid)
    return digest, header
