"""Picture files judged before they are decoded: whole ones of every kind pass, broken and hostile ones do not."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from farm.errors import (
    AnimatedImageUnsupported,
    FarmError,
    ImageSizeOutOfRange,
    ImageTooLarge,
    ImageTruncated,
    UnsupportedImageFormat,
)
from farm.pictures import open_picture, probe


def drawn(mode="RGB", size=(61, 43)) -> Image.Image:
    """A picture with some structure, so that its files are neither empty nor huge."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(image).ellipse((5, 5, size[0] // 2, size[1] // 2), fill=(200, 30, 90))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(size))
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda v: v * 257).convert("I;16")
    return image.convert(mode)


def saved(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("evil.txt", "x" * 100)
    return buffer.getvalue()


# A writer of PNGs, for the kinds that Pillow does not write and for those that are broken on purpose.

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]


def chunk(kind: bytes, body: bytes = b"", crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def rows(size, colour, depth, interlaced=False) -> bytes:
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    out = b""
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, lines = len(range(x, size[0], dx)), len(range(y, size[1], dy))
        if columns and lines:
            out += (b"\0" + b"\x55" * ((columns * bits + 7) // 8)) * lines
    return out


def png(
    size=(40, 30), colour=2, depth=8, interlaced=False, data=None, before=b"", after=b"", parts=1, **header
) -> bytes:
    inflated = rows(size, colour, depth, interlaced) if data is None else data
    packed = zlib.compress(inflated)
    step = max(1, -(-len(packed) // parts))
    method = header.get("compression", 0), header.get("filters", 0), header.get("interlace", int(interlaced))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, *method))
    out += chunk(b"PLTE", bytes(range(6))) if colour == 3 else b""
    out += before + b"".join(chunk(b"IDAT", packed[n : n + step]) for n in range(0, len(packed), step)) + after
    return out + chunk(b"IEND")


ONE_FRAME = chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(
    b"fcTL", struct.pack(">5I2HBB", 0, 40, 30, 0, 0, 1, 1, 0, 0)
)

# What passes

WHOLE = {
    "PNG": (saved(drawn(), "PNG"), "PNG", "RGB", 8),
    "PNG with alpha": (saved(drawn("RGBA"), "PNG"), "PNG", "RGBA", 8),
    "PNG of grey": (saved(drawn("L"), "PNG"), "PNG", "L", 8),
    "PNG of 16 bits": (saved(drawn("I;16"), "PNG"), "PNG", "I;16", 16),
    "PNG with a palette": (saved(drawn("P"), "PNG"), "PNG", "P", 8),
    "PNG in two colours": (saved(drawn("1"), "PNG"), "PNG", "1", 1),
    "PNG with text": (png(before=chunk(b"tEXt", b"a\0b"), after=chunk(b"tIME", b"\0" * 7)), "PNG", "RGB", 8),
    "PNG with an animation of one": (png(before=ONE_FRAME), "PNG", "RGB", 8),
    "JPEG": (saved(drawn(), "JPEG"), "JPEG", "RGB", 8),
    "JPEG of grey": (saved(drawn("L"), "JPEG"), "JPEG", "L", 8),
    "JPEG in CMYK": (saved(drawn("CMYK"), "JPEG"), "JPEG", "CMYK", 8),
    "progressive JPEG": (saved(drawn(), "JPEG", progressive=True), "JPEG", "RGB", 8),
    "JPEG with restarts": (saved(drawn(), "JPEG", restart_marker_blocks=1), "JPEG", "RGB", 8),
    "JPEG with a thumbnail": (saved(drawn(), "JPEG", exif=b"Exif\0\0" + saved(drawn(), "JPEG")), "JPEG", "RGB", 8),
    "JPEG with a second one behind": (saved(drawn(), "JPEG") + saved(drawn(), "JPEG"), "JPEG", "RGB", 8),
    "WebP": (saved(drawn(), "WEBP"), "WEBP", "RGB", 8),
    "lossless WebP": (saved(drawn(), "WEBP", lossless=True), "WEBP", "RGB", 8),
    "WebP with alpha": (saved(drawn("RGBA"), "WEBP"), "WEBP", "RGBA", 8),
    "WebP with EXIF": (saved(drawn(), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"), "WEBP", "RGB", 8),
    "AVIF": (saved(drawn(), "AVIF"), "AVIF", "RGB", 8),
    "AVIF with alpha": (saved(drawn("RGBA"), "AVIF"), "AVIF", "RGBA", 8),
    "TIFF": (saved(drawn(), "TIFF"), "TIFF", "RGB", 8),
    "TIFF of 16 bits": (saved(drawn("I;16"), "TIFF"), "TIFF", "I;16", 16),
    "TIFF in two colours": (saved(drawn("1"), "TIFF"), "TIFF", "1", 1),
    "TIFF in CMYK": (saved(drawn("CMYK"), "TIFF"), "TIFF", "CMYK", 8),
    "TIFF with LZW": (saved(drawn(), "TIFF", compression="tiff_lzw"), "TIFF", "RGB", 8),
    "TIFF with Deflate": (saved(drawn(), "TIFF", compression="tiff_adobe_deflate"), "TIFF", "RGB", 8),
    "TIFF with JPEG": (saved(drawn(), "TIFF", compression="jpeg"), "TIFF", "RGB", 8),
    "big TIFF": (saved(drawn(), "TIFF", big_tiff=True), "TIFF", "RGB", 8),
    "TIFF in many strips": (saved(drawn(), "TIFF", strip_size=1000), "TIFF", "RGB", 8),
}


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


# Several pictures


def frames(name: str, **options) -> bytes:
    pictures = [drawn(), drawn().transpose(Image.Transpose.ROTATE_180), drawn()]
    return saved(pictures[0], name, save_all=True, append_images=pictures[1:], **options)


@pytest.mark.parametrize(
    "data",
    [
        frames("PNG", duration=100),
        frames("WEBP", duration=100),
        frames("WEBP", duration=100, lossless=True),
        frames("AVIF", duration=100),
        frames("TIFF"),
        frames("TIFF", compression="tiff_lzw"),
    ],
)
def test_several_pictures_in_a_file(data):
    with pytest.raises(AnimatedImageUnsupported, match="several pictures"):
        probe(data)


def test_a_tiff_that_points_at_itself_ends():
    data = bytearray(saved(drawn(), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * entries, start)
    with pytest.raises(AnimatedImageUnsupported):
        probe(bytes(data))


# Cut short and damaged


@pytest.mark.parametrize("name", [name for name in WHOLE if "behind" not in name])
def test_a_file_cut_anywhere_is_never_taken_for_whole(name):
    data, *_ = WHOLE[name]
    cuts = {
        *range(12, min(len(data), 200), 7),
        *range(len(data) // 2, len(data), max(1, len(data) // 40)),
        len(data) - 1,
    }
    for end in sorted(cuts | {len(data) - 1}):
        with pytest.raises((ImageTruncated, UnsupportedImageFormat)) as caught:
            probe(data[:end])
        if end > 40:
            assert type(caught.value) is ImageTruncated, end


NOISY = saved(Image.effect_noise((40, 30), 80), "PNG")
DAMAGED = {
    "PNG without an end": png()[:-12],
    "PNG with a wrong checksum": png()[:-16] + b"\0\0\0\0" + png()[-12:],
    "PNG with a bad deflate stream": png(data=b"").replace(
        chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", b"\xff" * 50)
    ),
    "PNG with flipped bytes inside": png(data=bytes(range(256)) * 20)[:200]
    + b"\0\0"
    + png(data=bytes(range(256)) * 20)[202:],
    "PNG with a wrong checksum on a remark": png(before=chunk(b"teXt", b"x", crc=1)),
    "PNG without data": png().replace(b"IDAT", b"idAT"),
    "PNG with its header second": b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + png()[8:],
    "PNG with a short header": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0" * 12) + chunk(b"IEND"),
    "PNG of a signature": b"\x89PNG\r\n\x1a\n",
    "PNG with rubbish between its chunks": png(before=b"\0" * 40),
    "JPEG without an end": saved(drawn(), "JPEG")[:-2],
    "JPEG of a signature": b"\xff\xd8\xff",
    "JPEG of two markers": b"\xff\xd8\xff\xd9",
    "JPEG without a scan": saved(drawn(), "JPEG").split(b"\xff\xda")[0] + b"\xff\xd9",
    "JPEG whose scan comes first": b"\xff\xd8" + b"\xff\xda\0\x08" + b"\0" * 6 + b"\xff\xd9",
    "JPEG whose only end is its thumbnail's": saved(
        drawn(), "JPEG", exif=b"Exif\0\0" + saved(drawn(), "JPEG"), quality=95
    )[:-2],
    "JPEG with a segment beyond the end": b"\xff\xd8\xff\xe0\xff\xff" + b"\0" * 20,
    "WebP with a broken header": saved(drawn(), "WEBP")[:23] + b"\0\0\0" + saved(drawn(), "WEBP")[26:],
    "WebP of an unknown chunk": b"RIFF\x20\0\0\0WEBPABCD" + b"\0" * 24,
    "WebP whose chunk leaves the file": saved(drawn(), "WEBP")[:16] + b"\xff\xff\xff\0" + saved(drawn(), "WEBP")[20:],
    "AVIF of a header": saved(drawn(), "AVIF")[:32],
    "AVIF with a cut data box": saved(drawn("RGBA"), "AVIF")[:-5],
    "TIFF of a signature": b"II*\0\x08\0\0\0",
    "TIFF whose table lies outside": b"II*\0\xff\xff\xff\0" + b"\0" * 100,
    "big TIFF whose table lies beyond all memory": b"II+\0\x08\0\0\0" + b"\xff" * 8 + b"\0" * 100,
    "TIFF with an empty table": b"II*\0\x08\0\0\0" + b"\0" * 100,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told(name):
    with pytest.raises(ImageTruncated, match="damaged"):
        probe(DAMAGED[name])


def test_a_tiff_with_fewer_strips_than_rows():
    whole = saved(drawn(), "TIFF")
    place = whole.index(struct.pack("<HHI", 279, 4, 1)) + 8  # the length of the only strip
    with pytest.raises(ImageTruncated, match="rows of it are missing"):
        probe(whole[:place] + struct.pack("<I", 100) + whole[place + 4 :])


def test_a_tiff_of_many_channels():
    whole = saved(drawn(), "TIFF")
    place = whole.index(struct.pack("<HHI", 277, 3, 1)) + 8  # SamplesPerPixel
    with pytest.raises(UnsupportedImageFormat, match="too many channels"):
        probe(whole[:place] + struct.pack("<H", 99) + whole[place + 2 :])


def test_hostile_numbers_of_parts_end_soon():
    with pytest.raises(UnsupportedImageFormat, match="too many chunks"):
        probe(png(before=chunk(b"teXt") * 200_001))
    scans = saved(drawn(), "JPEG")
    place = scans.index(b"\xff\xda")
    with pytest.raises(UnsupportedImageFormat, match="too many scans"):
        probe(scans[:place] + scans[place:-2] * 501 + b"\xff\xd9")
    with pytest.raises(UnsupportedImageFormat, match="too many segments"):
        probe(b"\xff\xd8" + b"\xff\xe0\0\2" * 200_001)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), max_size=4))
def test_whatever_the_damage_only_the_farms_errors_come_out(name, patches):
    data = WHOLE[name][0]
    for where, patch in patches:
        place = int(where * len(data))
        data = data[:place] + patch + data[place + len(patch) :]
    try:
        probe(data)
    except FarmError as error:
        assert error.message.endswith(".") and "\n" not in error.message


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP", b"II*\0", b"\0\0\0\x1cftypavif"]),
    st.binary(max_size=300),
)
def test_rubbish_behind_a_true_beginning(magic, rest):
    with pytest.raises(FarmError):
        probe(magic + rest)


def test_judging_needs_neither_numpy_nor_torch():
    code = "import sys, farm.pictures; sys.exit(bool({'numpy', 'torch', 'boto3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert features.check("avif") and features.check("webp") and features.check("libtiff")
