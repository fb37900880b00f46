"""Every kind of picture through decode, cut, paste and encode: outside the mask the file that comes out, read by others
than wrote it, holds the very samples that went in."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from farm.schemas import Receipt
from tests.unit.image_kinds import DPI, GPS, HEIGHT, KINDS, WIDTH, Kind
from tests.unit.picture_files import saved
from worker import images
from worker.decoder.xmp import SOURCE_TYPE

HOLDS = {
    "png": ("L", "LA", "RGB", "RGBA"),
    "tiff": ("L", "LA", "RGB", "RGBA", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "avif": ("L", "RGB", "RGBA"),
}
CASES = [
    (name, output)
    for name, kind in KINDS.items()
    for output, modes in HOLDS.items()
    if kind.mode in modes and (output in ("png", "tiff") or kind.samples.dtype == np.uint8)
]
PAINTED = Image.fromarray(np.random.default_rng(9).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def mask_for(kind: Kind) -> np.ndarray:
    mask = np.zeros(kind.samples.shape[:2], np.uint8)
    mask[10:30, 12:33] = 255
    return mask


@cache
def edited(name: str, output: str, quality: int = 100) -> tuple[images.Source, bytes, Receipt]:
    kind = KINDS[name]
    mask = saved(Image.fromarray(mask_for(kind)), "PNG")
    source = images.decode(kind.data, mask, polarity="white_edits", max_pixels=10**6, output_format=output)
    region = images.cut(source, (64, 64), padding=8, grow=3)
    composite = images.paste(source, region, PAINTED, feather_px=3, preserve=True)
    written = images.encode(composite, output, quality)
    return source, written, images.receipt(source, written, region)


def read(written: bytes, output: str) -> np.ndarray:
    """[h, w, channels] by a reader that is not the worker's."""
    if output == "png":
        found = imagecodecs.png_decode(written)
    elif output == "tiff":
        found = tifffile.imread(io.BytesIO(written))
    elif output == "avif":
        found = imagecodecs.avif_decode(written)
    else:
        found = imagecodecs.webp_decode(written)
    return found if found.ndim == 3 else found[..., None]


@pytest.mark.parametrize(("name", "output"), CASES)
def test_outside_the_mask_every_bit_is_the_sources(name, output):
    kind = KINDS[name]
    source, written, receipt = edited(name, output)
    found, outside = read(written, output), mask_for(kind) == 0
    assert found.dtype == kind.samples.dtype
    if output == "avif" and kind.mode == "L" and found.shape[-1] == 3:  # some readers give grey in three channels
        found = found[..., :1]
    assert found.shape == kind.samples.shape
    assert (found[outside] == kind.samples[outside]).all()
    changed = (found[~outside] != kind.samples[~outside]).any(-1)
    assert changed.mean() > 0.9
    assert (receipt.max_abs_diff_outside, receipt.pixels_outside) == (0, int(outside.sum()))
    assert (receipt.mode, receipt.bits) == (kind.mode, 8 * kind.samples.dtype.itemsize)
    assert source.warnings == ()


@pytest.mark.parametrize(("name", "output"), [*CASES, *((name, "jpeg") for name in KINDS)])
def test_what_belongs_to_the_picture_goes_with_it(name, output):
    kind = KINDS[name]
    _, written, _ = edited(name, output, quality=90)
    picture = Image.open(io.BytesIO(written))
    picture.load()
    assert picture.size == (kind.samples.shape[1], kind.samples.shape[0])
    grey_in_colour = picture.mode not in ("L", "LA", "I;16") and kind.mode in ("L", "LA")
    assert picture.info.get("icc_profile", b"") == (b"" if grey_in_colour else kind.icc)
    assert SOURCE_TYPE.encode() in picture.info["xmp"]
    exif = picture.getexif()
    assert exif.get(0x0112, 1) == 1
    if kind.exif:
        assert exif[0x010F] == "Maker" and exif[0x8298] == "somebody"
        assert exif.get_ifd(0x8825) == GPS
        inner = exif.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003]) == ((HEIGHT, WIDTH) if kind.sideways else (WIDTH, HEIGHT))
        assert inner[0x927C] == b"maker's note \0\1\2"
    if kind.dpi and output in ("png", "tiff", "jpeg"):
        across, down = picture.info["dpi"]
        wanted = DPI[::-1] if kind.sideways else DPI
        assert (round(across), round(down)) == wanted


@pytest.mark.parametrize(
    ("name", "output", "told", "mode", "bits"),
    [
        ("JPEG, CMYK with a profile", "png", "no CMYK", "RGB", 8),
        ("TIFF, 16 bits CMYK", "webp", "no CMYK", "RGB", 8),
        ("TIFF, CMYK with a profile", "avif", "no CMYK", "RGB", 8),
        ("PNG, 16 bits RGB", "jpeg", "8 bits a channel", "RGB", 8),
        ("PNG, 16 bits grey", "avif", "8 bits a channel", "L", 8),
        ("PNG, 16 bits RGBA", "webp", "8 bits a channel", "RGBA", 8),
        ("PNG, RGBA", "jpeg", "laid on white", "RGB", 8),
        ("PNG, 16 bits grey with alpha", "jpeg", "laid on white", "L", 8),
        ("PNG, grey with a profile", "webp", "converted to sRGB", "RGB", 8),
    ],
)
def test_what_a_format_cannot_hold_is_said(name, output, told, mode, bits):
    source, _, receipt = edited(name, output)
    assert any(told in warning for warning in source.warnings)
    assert (receipt.mode, receipt.bits) == (mode, bits)
    assert receipt.max_abs_diff_outside == 0 or output == "jpeg"


@pytest.mark.parametrize("name", ["PNG, grey", "PNG, grey with alpha"])
@pytest.mark.parametrize("output", ["webp", "avif"])
def test_grey_that_is_written_in_three_channels_is_the_same_grey(name, output):
    source, written, receipt = edited(name, output)
    assert source.warnings == () and receipt.max_abs_diff_outside == 0
    picture = np.asarray(Image.open(io.BytesIO(written)).convert("RGB"))
    outside = mask_for(KINDS[name]) == 0
    assert (picture[outside] == KINDS[name].samples[outside][:, :1]).all()


TABLE = Path(images.__file__).with_name("KINDS.md")
OUTPUTS = ("png", "tiff", "webp", "avif", "jpeg")


def table() -> str:
    """What became of every kind, as measured on the files that were written."""
    lines = [
        "# Every kind of picture that is tried, and what becomes of it",
        "",
        "Made by `python -m tests.unit.test_image_kinds`; a test compares it with what it finds. Each kind is edited",
        "and written in every format at quality 100. A cell says what the file holds (`;16`: 16 bits a channel).",
        "Bold: outside the mask it is the source, bit for bit. Else it was converted as `README.md` says, and (but for",
        "JPEG, which is lossy) is what that conversion gives, bit for bit.",
        "",
        "| source | holds | profile | orientation | " + " | ".join(OUTPUTS) + " |",
        "| --- | --- | --- | ---: | " + " | ".join("---" for _ in OUTPUTS) + " |",
    ]
    for name, kind in KINDS.items():
        turned = Image.open(io.BytesIO(kind.data)).getexif().get(0x0112, 1)
        own = kind.mode + (";16" if kind.samples.dtype == np.uint16 else "")
        cells = [name, own, "yes" if kind.icc else "", f"{turned} → 1" if turned != 1 else "1"]
        for output in OUTPUTS:
            _, _, receipt = edited(name, output)
            form = receipt.mode + (";16" if receipt.bits == 16 else "")
            assert output == "jpeg" or receipt.max_abs_diff_outside == 0
            cells.append(f"**{form}**" if form == own and output != "jpeg" else form)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_of_kinds_is_what_is_found():
    assert len(KINDS) >= 30
    assert TABLE.read_text("utf-8") == table()


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
