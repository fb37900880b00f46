"""The promise, measured on what was written."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from farm.errors import InvalidInput, OutputExists
from farm.schemas import Receipt
from worker import decoder
from worker.images.decoding import Progress, Source
from worker.images.formats import convertible, fitted
from worker.images.raster import Form, as_samples
from worker.images.regions import Region


def receipt(source: Source, written: bytes, region: Region | None = None, progress: Progress = lambda: None) -> Receipt:
    """Decode what was written and compare it with the source outside the mask: the submitted one, or where the region
    lets the grown one be pasted, that.

    It is compared in the form that the file has (see `Receipt`), a strip at a time; `progress` is called after each.
    Raises OutputExists when what lies there is not what was written: somebody else's picture, or none.
    """
    picture = source.image
    pasted = source.edits if region is None else region.pasted

    def compare(header: decoder.Header, strips: Iterator[bytes]) -> Receipt:
        form, size = Form(header.space, header.alpha, header.bits), (header.width, header.height)
        if size != picture.size or not convertible(picture.form, form):
            for _ in strips:
                pass
            raise OutputExists(
                "The picture at the output is not this job's: its size or kind differs; choose another output."
            )
        worst = kept = top = 0
        for strip in strips:
            there = as_samples(strip, header.width, form)
            rows = slice(top, top + len(there))
            outside = pasted[rows] == 0
            here = fitted(picture.samples[rows], picture, form)
            if outside.any():
                worst = max(worst, int(np.abs(there[outside].astype(np.int32) - here[outside]).max()))
                kept += int(np.count_nonzero(outside))
            top += len(there)
            progress()
        return Receipt(
            max_abs_diff_outside=worst, pixels_outside=kept, mode=form.mode, bits=form.bits,
            outside="submitted" if pasted is source.edits else "grown",
        )  # fmt: skip

    try:
        return decoder.shared.stream(written, compare, max_pixels=picture.width * picture.height)
    except OutputExists:
        raise
    except InvalidInput:
        raise OutputExists("What lies at the output is not this job's picture; choose another output.") from None
