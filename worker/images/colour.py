"""Between a picture's own colours and sRGB, which is what the model sees.

With a colour profile it is done in a decoding process, as a profile is a stranger's file like any other. Without one,
grey is grey, three channels are sRGB, and CMYK is taken as the plain complement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker import decoder
from worker.images.raster import Form

Pixels = NDArray[np.uint8]


def to_srgb(colours: Pixels, form: Form, icc: bytes) -> Pixels:
    """[h, w, channels] of 8 bits, without alpha, in the picture's own colours → [h, w, 3] in sRGB."""
    height, width = colours.shape[:2]
    if icc:
        data = np.ascontiguousarray(colours).tobytes()
        converted = decoder.shared.convert(data, (width, height), icc, form.space, to_srgb=True)
        return np.frombuffer(converted, np.uint8).reshape(height, width, 3)
    if form.space == "rgb":
        return colours
    if form.space == "grey":
        return np.repeat(colours, 3, axis=-1)
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours), "CMYK").convert("RGB"))


def from_srgb(picture: Image.Image, form: Form, icc: bytes) -> Pixels:
    """A picture in sRGB → [h, w, channels] of 8 bits, without alpha, in the colours of `form` and its profile."""
    picture = picture.convert("RGB")
    channels = Form(form.space, False, 8).channels
    if icc:
        data = decoder.shared.convert(picture.tobytes(), picture.size, icc, form.space, to_srgb=False)
    else:
        data = picture.convert(Form(form.space, False, 8).mode).tobytes()
    return np.frombuffer(data, np.uint8).reshape(picture.height, picture.width, channels)
