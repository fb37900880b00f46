"""Whether a picture file is whole, told from its structure: one check a format, none of which decodes pixels.

Every check gets the file's bytes and `judge(width, height)`, which raises for a size that is not allowed; it calls that
as soon as it knows the size, and gives back the bits a channel. All raise ImageTruncated for a file that is cut short
or damaged, AnimatedImageUnsupported for one with several pictures, UnsupportedImageFormat for a kind that Pillow does
not read. Each is bounded: in memory to about 1 MB beside the file, in time by the size that `judge` let through.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Literal, NoReturn

from PIL import AvifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from farm.errors import AnimatedImageUnsupported, ImageTruncated, UnsupportedImageFormat

Format = Literal["PNG", "JPEG", "WEBP", "AVIF", "TIFF"]
Judge = Callable[[int, int], None]

_MAX_PARTS = 200_000  # chunks, segments or boxes: a file of nothing else must not keep us busy
_MAX_SCANS = 500  # of a progressive JPEG, each of which decodes the whole picture again

_PLUGINS: dict[Format, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# Grey with alpha in 16 bits, which Pillow reads from PNG and not from TIFF: its four bytes a pixel, as they stand.
TiffImagePlugin.OPEN_INFO.update(
    {(order, 1, (1,), 1, (16, 16), extra): ("RGBA", "RGBA") for order in (b"II", b"MM") for extra in ((0,), (2,))}
)

UNREADABLE = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises for something that it cannot read."""


def open_picture(data: bytes, name: Format) -> ImageFile.ImageFile:
    """Pillow's picture of the bytes, its pixels not decoded yet, by the plugin of that one format.

    Unlike `Image.open` it neither tries other plugins nor warns of the size, which is judged before.
    Raises ImageTruncated when Pillow cannot make sense of the header.
    """
    try:
        return _PLUGINS[name](BytesIO(data))
    except UNREADABLE as error:
        if str(error) == "unknown pixel mode":
            _unsupported(f"The {name} file's pixels are of a kind that is not read here")
        raise ImageTruncated(
            f"The {name} file is damaged: its header cannot be read ({type(error).__name__}); send it again."
        ) from error


def _cut(name: str, what: str = "it ends too early") -> NoReturn:
    raise ImageTruncated(f"The {name} file is cut short or damaged: {what}; send the whole file again.")


def _several(name: str) -> NoReturn:
    raise AnimatedImageUnsupported(
        f"The {name} file holds several pictures; send the one to edit as a file of its own."
    )


def _unsupported(what: str) -> NoReturn:
    raise UnsupportedImageFormat(f"{what}; save the picture again as an ordinary PNG, JPEG, WebP, AVIF or TIFF.")


# PNG (https://www.w3.org/TR/png-3/)

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type → channels
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATE_STEP = 1 << 20


def png(data: bytes, judge: Judge) -> int:
    chunks = _png_chunks(data)
    kind, header = next(chunks)
    if kind != b"IHDR" or len(header) != 13:
        _cut("PNG", "it does not begin with its header")
    width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", header)
    judge(width, height)
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        _unsupported("The PNG file is of an unknown kind")
    missing = _png_bytes(width, height, depth * _PNG_CHANNELS[colour], bool(interlace))
    inflater = zlib.decompressobj()
    for kind, body in chunks:
        if kind == b"acTL" and int.from_bytes(body[:4], "big") > 1:
            _several("PNG")
        if kind == b"IDAT" and missing:
            missing -= _inflated(inflater, body, missing)
    if missing:
        _cut("PNG", "rows of it are missing")
    return int(depth)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, body) up to IEND. Checksums are those of the chunks that make the picture."""
    view, place = memoryview(data), 8
    for _ in range(_MAX_PARTS):
        if place + 12 > len(data):
            _cut("PNG")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if not kind.isalpha():
            _cut("PNG", "there is no chunk where one should be")
        if end > len(data):
            _cut("PNG")
        critical = kind[:1].isupper()
        if critical and zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            _cut("PNG", "a checksum is wrong")
        if kind == b"IEND":
            return
        yield kind, view[place + 8 : end - 4]
        place = end
    _unsupported("The PNG file is broken into too many chunks")


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """The length of the inflated data: for each row a filter byte and its pixels, filled up to a byte."""
    total = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _inflated(inflater: zlib._Decompress, body: memoryview | bytes, most: int) -> int:
    """How many bytes come out of `body`, up to `most`; they are thrown away as they come."""
    count = 0
    try:
        while body and count < most and not inflater.eof:
            count += len(inflater.decompress(body, min(_INFLATE_STEP, most - count)))
            body = inflater.unconsumed_tail
    except zlib.error:
        _cut("PNG", "its data cannot be inflated")
    return count


# JPEG (ITU-T T.81)

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_SCAN_END = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # in a scan, FF00 is data and FFD0 to FFD7 go on


def jpeg(data: bytes, judge: Judge) -> int:
    place, scans, bits = 2, 0, 0
    for _ in range(_MAX_PARTS):
        found = (_JPEG_SCAN_END if scans else _JPEG_MARKER).search(data, place)
        if found is None:
            _cut("JPEG")
        marker, place = found[1][0], found.end()
        if marker == 0xD9:  # EOI
            if not scans:
                _cut("JPEG", "there is no picture in it")
            return bits
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these stand alone
            continue
        if place + 2 > len(data):
            _cut("JPEG")
        length = int.from_bytes(data[place : place + 2], "big")
        if length < 2 or place + length > len(data):
            _cut("JPEG")
        if marker in _JPEG_FRAMES:
            if length < 8:
                _cut("JPEG", "its frame has no size")
            bits, height, width = struct.unpack_from(">BHH", data, place + 2)
            judge(width, height)
            if bits != 8:
                _unsupported(f"The JPEG file has {bits} bits a channel")
        if marker == 0xDA:  # SOS
            if not bits:
                _cut("JPEG", "a scan stands before its frame")
            scans += 1
            if scans > _MAX_SCANS:
                _unsupported("The JPEG file has too many scans")
        place += length
    _unsupported("The JPEG file is broken into too many segments")


# WebP (RFC 9649)


def webp(data: bytes, judge: Judge) -> int:
    if len(data) < 30:
        _cut("WebP")
    end = 8 + int.from_bytes(data[4:8], "little")
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        judge(1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
        if head[0] & 0x02:
            _several("WebP")
    elif kind == b"VP8L" and head[0] == 0x2F:
        packed = int.from_bytes(head[1:5], "little")
        judge(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    elif kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        judge(int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF)
    else:
        _cut("WebP", "its header cannot be read")
    if end > len(data):
        _cut("WebP")
    place = 12
    for _ in range(_MAX_PARTS):
        if place + 8 > end:
            return 8
        place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
        if place > end:
            _cut("WebP")
        place += place & 1
    _unsupported("The WebP file is broken into too many chunks")


# AVIF (ISO/IEC 14496-12 boxes)


_AVIF_NEEDS = {b"ftyp", b"meta", b"mdat"}


def avif(data: bytes, judge: Judge) -> int:
    place, seen = 0, set[bytes]()
    for _ in range(_MAX_PARTS):
        if place == len(data):
            break
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size == 0:  # to the end of the file
            size = len(data) - place
        if size < 8 or place + size > len(data):
            if kind in _AVIF_NEEDS or not seen >= _AVIF_NEEDS:
                _cut("AVIF")
            break  # something else follows the picture
        seen.add(kind)
        place += size
    if not seen >= _AVIF_NEEDS:
        _cut("AVIF")
    picture = open_picture(data, "AVIF")
    judge(*picture.size)
    return 8  # Pillow's decoder gives 8, whatever the file holds


# TIFF 6.0, and BigTIFF (its header and table are made of 8-byte numbers)

_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_COUNTS = {3: "H", 4: "I", 16: "Q"}  # the types that sizes and offsets come in
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR = 256, 257, 258, 259, 262, 284
_SAMPLES, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 277, 278, 322, 323, 339
_SMALL_TILE = 1024 * 1024  # px: as large as that a tile may be whatever the picture's size
_STRIPS, _TILES = (273, 279), (324, 325)  # where each begins, and its bytes


def tiff(data: bytes, judge: Judge) -> int:
    try:
        table = _tiff_table(data)
        width, height = table[_WIDTH][0], table[_HEIGHT][0]
        judge(width, height)
        if table.get(_SAMPLES, (1,))[0] > TiffImagePlugin.MAX_SAMPLESPERPIXEL:
            _unsupported("The TIFF file has too many channels")
        bits = max(table.get(_BITS, (1,)))
        if bits > 16 or set(table.get(_SAMPLE_FORMAT, ())) - {1}:  # which Pillow would clip to 0…255, not scale
            _unsupported("The TIFF file's values are not whole numbers of 16 bits or less")
        if bits not in (1, 2, 4, 8, 16):
            _unsupported(f"The TIFF file has {bits} bits a channel")
        if bits == 16 and table.get(_PLANAR) == (2,):  # which Pillow reads wrong
            _unsupported("The TIFF file has its channels of 16 bits apart from each other")
        _check_strips(data, table, width, height)
        return bits
    except (struct.error, LookupError, ArithmeticError):  # offsets may be absurd, sizes 0
        _cut("TIFF", "its table of contents is broken")


def _tiff_table(data: bytes) -> dict[int, tuple[int, ...]]:
    """Tag → numbers, of the file's only table. Every value must lie inside the file, whether we need it or not."""
    order, big = "<" if data[:2] == b"II" else ">", b"\x2b" in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    place, step, inline = start + (8 if big else 2), 20 if big else 12, 8 if big else 4
    if place + entries * step + inline > len(data):
        _cut("TIFF")
    table = {}
    for entry in range(place, place + entries * step, step):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, entry)
        at, size = entry + step - inline, count * _TIFF_TYPES.get(kind, 0)
        if size > inline:
            (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, at)
        if at + size > len(data):
            _cut("TIFF")
        if kind in _TIFF_COUNTS:
            if count > _MAX_PARTS:
                _unsupported("The TIFF file is broken into too many parts")
            table[tag] = struct.unpack_from(f"{order}{count}{_TIFF_COUNTS[kind]}", data, at)
    if any(data[place + entries * step :][:inline]):
        _several("TIFF")
    return table


def _check_strips(data: bytes, table: dict[int, tuple[int, ...]], width: int, height: int) -> None:
    """Each strip or tile that the picture needs must lie inside the file."""
    tiled = _TILES[0] in table
    across, down = (table[_TILE_WIDTH][0], table[_TILE_HEIGHT][0]) if tiled else (width, height)
    if tiled and across * down > max(_SMALL_TILE, 4 * width * height):  # libtiff makes room for a whole one
        _unsupported("The TIFF file's tiles are far larger than its picture")
    if not tiled:
        down = min(table.get(_ROWS_PER_STRIP, (height,))[0], height)
    planes = table.get(_SAMPLES, (1,))[0] if table.get(_PLANAR) == (2,) else 1
    needed = -(-width // across) * -(-height // down) * planes
    offsets, counts = (table[tag][:needed] for tag in (_TILES if tiled else _STRIPS))
    if min(len(offsets), len(counts)) < needed:
        _cut("TIFF", "strips of it are missing")
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        _cut("TIFF")
    # Plain rows can be counted; YCbCr (6) has fewer samples than pixels.
    if not tiled and table.get(_COMPRESSION, (1,)) == (1,) and table.get(_PHOTOMETRIC) != (6,):
        bits = sum(table.get(_BITS, (1,))) // planes
        if sum(counts) < planes * height * -(-width * bits // 8):
            _cut("TIFF", "rows of it are missing")


CHECKS: dict[Format, Callable[[bytes, Judge], int]] = {
    "PNG": png,
    "JPEG": jpeg,
    "WEBP": webp,
    "AVIF": avif,
    "TIFF": tiff,
}
