"""Picture files judged before they are decoded: by kind and by size; whole ones of every kind pass."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib

import pytest
from PIL import Image, features

from farm.errors import (
    ImageSizeOutOfRange,
    ImageTooLarge,
    ImageTruncated,
    UnsupportedImageFormat,
)
from farm.pictures import misnamed, open_picture, probe
from tests.unit.picture_files import KINDS, WHOLE, chunk, drawn, png, rows, saved, zipped


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_picture_passes_and_decodes(name):
    data, *expected = WHOLE[name]
    info = probe(data)
    assert [info.format, info.mode, info.bits] == expected
    picture = open_picture(data, info.format)
    assert picture.size == (info.width, info.height)
    picture.load()


@pytest.mark.parametrize("name", WHOLE)
def test_an_archive_behind_the_picture_does_no_harm(name):
    data, *_ = WHOLE[name]
    assert probe(data + zipped()) == probe(data)
    with zipfile.ZipFile(io.BytesIO(data + zipped())) as archive:
        assert archive.namelist() == ["evil.txt"]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_of_png_has_its_rows_counted(colour, depth, interlaced):
    for size in ((16, 16), (17, 19), (40, 30), (33, 65)):
        data = rows(size, colour, depth, interlaced)
        whole = png(size, colour, depth, interlaced, parts=3)
        assert probe(whole).bits == depth
        open_picture(whole, "PNG").load()
        for missing in (1, 2, len(data) // 2, len(data)):
            with pytest.raises(ImageTruncated, match="rows of it are missing"):
                probe(png(size, colour, depth, interlaced, data=data[:-missing]))


def test_pillow_itself_says_nothing_of_missing_rows():
    """Why the rows are counted here: should Pillow learn it one day, the counting can go."""
    data = png(data=rows((40, 4), 2, 8))
    Image.open(io.BytesIO(data)).verify()
    Image.open(io.BytesIO(data)).load()
    with pytest.raises(ImageTruncated):
        probe(data)


# What is no picture, or not one of the five kinds

STRANGERS = {
    "nothing": (b"", "empty"),
    "one byte": (b"\x89", "no picture"),
    "text": (b"hello, this is a text", "text"),
    "HTML": (b"<!DOCTYPE html><html></html>", "HTML"),
    "HTML with space and mark": (b"\xef\xbb\xbf \n<html>", "HTML"),
    "an error page in XML": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' width='99'/>", "SVG"),
    "SVG in XML": (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg/>", "SVG"),
    "EPS": (saved(drawn(), "EPS"), "PostScript"),
    "PSD": (b"8BPS\0\1" + b"\0" * 100, "Photoshop"),
    "ICO": (saved(drawn(), "ICO"), "icon"),
    "GIF": (saved(drawn("P"), "GIF"), "GIF"),
    "BMP": (saved(drawn(), "BMP"), "BMP"),
    "PPM": (saved(drawn(), "PPM"), "send PNG"),
    "TGA": (saved(drawn(), "TGA"), "no picture"),
    "JPEG 2000": (saved(drawn(), "JPEG2000"), "JPEG 2000"),
    "PCX": (saved(drawn(), "PCX"), "no picture"),
    "SGI": (saved(drawn(), "SGI"), "no picture"),
    "ZIP": (zipped(), "ZIP"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50, "HEIC"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 50, "video"),
    "WAV": (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 50, "no picture"),
    "half a PNG signature": (b"\x89PNG\r\n", "no picture"),
    "zeros": (b"\0" * 5000, "no picture"),
    "PNG with a bad depth": (png(depth=7, data=b""), "unknown kind"),
    "PNG of three colours": (png(colour=2, depth=4, data=b""), "unknown kind"),
    "PNG with another compression": (png(compression=1), "unknown kind"),
    "PNG with another interlace": (png(interlace=2), "unknown kind"),
    "JPEG of 12 bits": (saved(drawn(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_one_of_the_five_kinds(name):
    data, told = STRANGERS[name]
    with pytest.raises(UnsupportedImageFormat, match=told):
        probe(data)


def test_magic_wins_over_any_name():
    for name in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert probe(saved(drawn(), name)).format == name  # there is no name to be misled by


@pytest.mark.parametrize(
    ("name", "kind", "wrong"),
    [
        ("s3://b/a.PNG", "PNG", False),
        ("a.jpeg", "JPEG", False),
        ("a.jpg", "PNG", True),
        ("a.tif", "WEBP", True),
        ("a", "PNG", False),
        ("a.png.part", "JPEG", False),
        ("", "AVIF", False),
    ],
)
def test_a_name_that_promises_another_format(name, kind, wrong):
    assert misnamed(name, kind) is wrong


# Size


def bomb(side: int) -> bytes:
    packer, row = zlib.compressobj(9), b"\0" * (side // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND")


def resized(data: bytes, width: int, height: int) -> bytes:
    """The same JPEG or WebP claiming another size."""
    if data[:2] == b"\xff\xd8":
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


def test_bombs_are_refused_by_their_header_without_being_inflated():
    data = bomb(20_000)
    assert len(data) < 60_000
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLarge, match="20,000×20,000"):
            probe(data)
        for side in (12_000, 16_383, 60_000):
            with pytest.raises(ImageTooLarge):
                probe(resized(saved(drawn(), "JPEG"), side, side))
        with pytest.raises(ImageTooLarge):
            probe(resized(saved(drawn(), "WEBP"), 16_383, 16_383))
        extended = saved(drawn("RGBA"), "WEBP")
        with pytest.raises(ImageTooLarge):
            probe(extended[:24] + b"\xff\x3f\0\xff\x3f\0" + extended[30:])
        tiff = saved(drawn(), "TIFF")
        for tag in (256, 257):
            place = tiff.index(struct.pack("<HH", tag, 4 if struct.pack("<HHI", tag, 4, 1) in tiff else 3))
            tiff = tiff[: place + 2] + struct.pack("<HII", 4, 1, 20_000) + tiff[place + 12 :]
        with pytest.raises(ImageTooLarge):
            probe(tiff)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_large_picture_within_the_limit_is_counted_in_little_memory_and_without_a_warning():
    data = bomb(9_984)  # 99.7 megapixels: Pillow would warn
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe(data).width == 9_984
        assert probe(bomb(20_000), max_pixels=400_000_000).width == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_data_beyond_the_rows_is_not_inflated():
    data = png(data=rows((40, 30), 2, 8) + b"\0" * 300_000_000)
    tracemalloc.start()
    assert probe(data).width == 40
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_sizes_out_of_range(name):
    for size in ((15, 40), (40, 15), (1, 1)):
        with pytest.raises(ImageSizeOutOfRange, match="16 to 32,768"):
            probe(saved(drawn(size=(61, 43)).resize(size), name))
    assert probe(saved(drawn(size=(16, 16)), name)).width == 16
    with pytest.raises(ImageSizeOutOfRange):
        probe(saved(drawn(), name), max_side=60)
    with pytest.raises(ImageTooLarge):
        probe(saved(drawn(), name), max_pixels=61 * 43 - 1)
    assert probe(saved(drawn(), name), max_pixels=61 * 43).height == 43


def test_a_long_strip_is_out_of_range():
    with pytest.raises(ImageSizeOutOfRange):
        probe(png((32_769, 16), 0, 1))
    with pytest.raises(ImageSizeOutOfRange):
        probe(png((0, 16), 0, 1, data=b""))


def test_judging_needs_neither_numpy_nor_torch():
    code = "import sys, farm.pictures; sys.exit(bool({'numpy', 'torch', 'boto3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert features.check("avif") and features.check("webp") and features.check("libtiff")
