"""Picture files that are cut short, damaged, hostile, or several in one."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from farm.errors import (
    AnimatedImageUnsupported,
    FarmError,
    ImageTruncated,
    UnsupportedImageFormat,
)
from farm.pictures import open_picture, probe
from tests.unit.picture_files import WHOLE, chunk, drawn, png, saved

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


@pytest.mark.parametrize(
    "picture", [Image.new("F", (40, 40), 0.5), Image.new("I", (40, 40), 70_000), Image.new("I", (40, 40), -5)]
)
def test_a_tiff_of_numbers_that_pillow_would_clip(picture):
    with pytest.raises(UnsupportedImageFormat, match="not whole numbers"):
        probe(saved(picture, "TIFF"))


def tiled(side: int, size: int = 64) -> bytes:
    """A TIFF of `size`×`size` px in one tile of `side`×`side` px, deflated zeros."""
    packed = zlib.compress(b"\0" * side * min(side, 2048))
    tags = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(packed)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4  # where the tile begins
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + b"\0" * 4 + packed


def test_a_tiff_whose_tile_is_far_larger_than_its_picture():
    for side in (64, 512, 1024):
        assert probe(tiled(side)).width == 64
        open_picture(tiled(side), "TIFF").load()
    for side in (1040, 16_384, 65_520):
        with pytest.raises(UnsupportedImageFormat, match="far larger"):
            probe(tiled(side))
    assert probe(tiled(2048, size=1024)).width == 1024


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
