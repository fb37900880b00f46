"""Pictures in and out: decode what was fetched, cut out the part to edit, paste it back, and measure the promise.

Three sizes meet here. The *source* is the picture as it was submitted, at its own size, in its own colours and depth.
The *region* is the box of the source around the mask that goes through the model. The *bucket* is the size that the
region is resized to, one of a few, so that jobs of different photos can share a step.

The mask is a promise: wherever the submitted mask is 0 the paste's alpha is 0, and the source's samples are written as
they were read. Growing it shapes only what the model sees (unless a job asks for more), and the feather runs inward.

Nothing here holds a second picture of the source's size while it pastes: a composite is made strip by strip, as it is
encoded. README.md has the table of what becomes of every kind of picture.
"""

from worker.images.decoding import Source, decode, decode_image
from worker.images.encoding import CONTENT_TYPES, encode
from worker.images.masks import feather
from worker.images.paste import Composite, paste
from worker.images.raster import Raster
from worker.images.receipts import receipt
from worker.images.regions import Box, Region, Size, choose_bucket, cut, edit_box, widen

__all__ = [
    "CONTENT_TYPES",
    "Box",
    "Composite",
    "Raster",
    "Region",
    "Size",
    "Source",
    "choose_bucket",
    "cut",
    "decode",
    "decode_image",
    "edit_box",
    "encode",
    "feather",
    "paste",
    "receipt",
    "widen",
]
