"""Pictures and texts as the arrays that the compiled program takes."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from worker.engine.errors import InvalidParameter
from worker.engine.image_processor import RESAMPLE
from worker.engine.prompts import max_tokens

_MULTIPLE = 32  # sides are cut to this


def token_ids(prompt: str | list[str], tokenizer, text_encoder) -> np.ndarray:
    """``[B, 77]`` int32, padded or cut off. Raises InvalidParameter for what is no text."""
    if not isinstance(prompt, str | list):
        raise InvalidParameter("prompt", f"has to be a string or a list of them, not {type(prompt).__name__}")
    length = max_tokens(tokenizer, text_encoder)
    ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="np").input_ids
    return ids.reshape(-1, length).astype(np.int32)


def pictures_of(image: Image.Image | list[Image.Image], mask: Image.Image | list[Image.Image]) -> tuple[Array, Array]:
    """(masked images ``[B, 3, H, W]`` in −1..1, masks ``[B, 1, H, W]`` of 0 and 1), sides cut to multiples of 32.

    Raises InvalidParameter for what is no picture, is not RGB, or of unlike sizes.
    """
    images = np.stack([_pixels(one, "image", "RGB") for one in _listed(image, "image")])
    masks = np.stack([_pixels(one, "mask", "L") for one in _listed(mask, "mask")])[:, None]
    if images.shape[1:3] != masks.shape[2:] or len(masks) not in (1, len(images)):
        shapes = f"{images.shape[:3]} and {masks.shape[:1] + masks.shape[2:]}"
        raise InvalidParameter("mask", f"has to be of the images' number and size; they are {shapes}")
    masks = np.broadcast_to((masks >= 0.5).astype(np.float32), (len(images), *masks.shape[1:]))
    masked = (2.0 * images.transpose(0, 3, 1, 2) - 1.0) * (masks < 0.5)
    return jnp.asarray(masked), jnp.asarray(masks)


def _listed(pictures: Image.Image | list[Image.Image], field: str) -> list[Image.Image]:
    listed = pictures if isinstance(pictures, list) else [pictures]
    if not listed or not all(isinstance(one, Image.Image) for one in listed):
        raise InvalidParameter(field, "has to be a PIL image or a list of them")
    if len({one.size for one in listed}) > 1:
        raise InvalidParameter(field, "has to be pictures of one size to be made in one call")
    return listed


def _pixels(picture: Image.Image, field: str, mode: str) -> np.ndarray:
    """``[H, W(, 3)]`` float32 in 0..1."""
    size = tuple(side - side % _MULTIPLE for side in picture.size)
    if 0 in size:
        raise InvalidParameter(field, f"has to be at least {_MULTIPLE} px wide and high, not {picture.size}")
    if mode == "L":
        picture = picture.resize(size).convert("L")
    elif picture.mode != mode:
        raise InvalidParameter(field, f"has to be {mode}, not {picture.mode}: use `.convert({mode!r})`")
    else:
        picture = picture.resize(size, resample=RESAMPLE)
    return np.asarray(picture, np.float32) / 255.0
