"""What was painted, back in its place: made strip by strip, in the source's own colours and depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.images import colour, masks
from worker.images.decoding import Source
from worker.images.raster import Samples
from worker.images.regions import Region


@dataclass(frozen=True)
class Composite:
    """The source with `patch` [h, w, channels] (8 bits, its colours, the bucket's size) in the region's box."""

    source: Source
    region: Region
    patch: colour.Pixels
    feather_px: int
    preserve: bool

    def rows(self, top: int, bottom: int) -> Samples:
        """Rows of the picture in the source's form. Where nothing may be pasted they are the source's own, bit for bit.

        What is painted is opaque. Laid over a transparent part it is seen as far as the feather lets it; beneath the
        image it is seen as far as the image is transparent.
        """
        samples = self.source.image.samples[top:bottom]
        left, first, right, last = self.region.box
        first, last = max(first, top), min(last, bottom)
        if first >= last:
            return samples
        result = samples.copy()
        part = result[first - top : last - top, left:right]
        paint = self._paint(first, last)
        if not self.preserve:
            cover = np.ones(part.shape[:2], np.float32)
        elif self.source.beneath:
            cover = (self.source.edits[first:last, left:right] > 0).astype(np.float32)
        else:
            cover = self._feather(first, last)
        touched = cover > 0
        part[touched] = self._blended(part[touched], paint[touched], cover[touched][:, None])
        return result

    def _paint(self, first: int, last: int) -> NDArray[np.float32]:
        """The patch's pixels for these rows of the box, at the source's depth.

        Each channel by itself in floating point, so that nothing is rounded or clipped on the way: the strips of a
        picture fit together, and one of 16 bits gets smooth ramps.
        """
        left, top, right, bottom = self.region.box
        height, width, channels = self.patch.shape
        scale = height / (bottom - top)
        ends = (0, (first - top) * scale, width, min((last - top) * scale, height))
        paint = np.empty((last - first, right - left, channels), np.float32)
        for channel in range(channels):
            picture = Image.fromarray(self.patch[..., channel].astype(np.float32))
            resized = picture.resize((right - left, last - first), Image.Resampling.LANCZOS, box=ends)
            paint[..., channel] = np.asarray(resized)
        return np.clip(paint, 0, 255) * np.float32(self.source.image.form.top / 255)

    def _feather(self, first: int, last: int) -> NDArray[np.float32]:
        """Drawn with a margin, so that it knows what lies beyond the rows and the box."""
        left, _, right, _ = self.region.box
        margin = self.feather_px
        above, before = min(first, margin), min(left, margin)
        around = self.region.pasted[first - above : last + margin, left - before : right + margin]
        alpha = masks.feather(around, margin)
        return alpha[above : above + last - first, before : before + right - left]

    def _blended(self, own: Samples, paint: NDArray[np.float32], cover: NDArray[np.float32]) -> Samples:
        """Porter and Duff's "over" (Compositing Digital Images, 1984) of pixels [n, channels], for straight alpha."""
        form = self.source.image.form
        if not form.alpha:
            return np.rint(own * (1 - cover) + paint * cover).astype(form.dtype)
        opaque, colours = own[:, -1:].astype(np.float32) / form.top, own[:, :-1]
        if self.source.beneath and self.preserve:
            mixed, alpha = colours * opaque + paint * (1 - opaque), np.ones_like(opaque)
        else:
            rest = opaque * (1 - cover)
            alpha = cover + rest
            mixed = (paint * cover + colours * rest) / alpha
        return np.rint(np.concatenate([mixed, alpha * form.top], axis=-1)).astype(form.dtype)


def paste(source: Source, region: Region, painted: Image.Image, *, feather_px: int, preserve: bool) -> Composite:
    """The source with `painted` (bucket-sized, sRGB) in its place. Pixels that the mask keeps are the source's own.

    With `preserve` off the whole region is replaced, as diffusers does.
    """
    patch = colour.from_srgb(painted, source.image.form, source.image.icc)
    return Composite(source, region, patch, feather_px, preserve)
