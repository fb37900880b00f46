"""Pictures that are none, or not whole, or too much."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO

from PIL import Image

from tests.faults.bad_inputs.bench import Bench, saved
from tests.faults.bad_inputs.row import Fields, Row
from tests.unit.picture_files import chunk, drawn, png, rows, zipped


def image(data: bytes | Callable[[Bench], bytes], name: str = "") -> Callable[[Bench], Fields]:
    """A job whose image is these bytes."""
    return lambda bench: {"image": bench.put(data if isinstance(data, bytes) else data(bench), name)}


def mask(picture: Image.Image | bytes, **fields: object) -> Callable[[Bench], Fields]:
    """A job whose mask is this."""
    data = picture if isinstance(picture, bytes) else saved(picture)
    return lambda bench: {"mask": bench.put(data), **fields}


def _photo(bench: Bench, kind: str = "PNG", **options: object) -> bytes:
    return saved(bench.photo, kind, **options)


def _bomb(side: int) -> bytes:
    """A PNG of side² pixels in a few kB."""
    packer, row = zlib.compressobj(9), b"\0" * (side // 8 + 1)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return png((side, side), 0, 1, data=b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", packed))


def _frames(kind: str) -> bytes:
    pictures = [drawn(), drawn().rotate(180)]
    return saved(pictures[0], kind, save_all=True, append_images=pictures[1:])


def _tile_bomb() -> bytes:
    """A TIFF of 64×64 px in one tile of 32,768×32,768."""
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32768, 323: 32768, 324: 8 + 2 + 120 + 4, 325: 9}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + b"\0" * 4 + zlib.compress(b"\0")


def _office() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<w:document/>")
    return buffer.getvalue()


_FORMAT, _TRUNCATED, _LARGE, _SIZE = (
    "UnsupportedImageFormat",
    "ImageTruncated",
    "ImageTooLarge",
    "ImageSizeOutOfRange",
)
_TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06" + b"\0" * 7  # orientation 6
_ANIMATED = "AnimatedImageUnsupported"

PICTURES: tuple[Row, ...] = (
    Row("0 bytes", _FORMAT, image(b"")),
    Row("text", _FORMAT, image(b"hello, this is text")),
    Row("text named .png", _FORMAT, image(b"hello, this is text", "text.png")),
    Row("an HTML page", _FORMAT, image(b"<!DOCTYPE html><html><body>404</body></html>")),
    Row("a store's error page in XML", _FORMAT, image(b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>")),
    Row("PDF", _FORMAT, image(b"%PDF-1.7\n" + b"\0" * 99)),
    Row("SVG", _FORMAT, image(b"<svg xmlns='http://www.w3.org/2000/svg' width='99'/>")),
    Row("EPS, which Pillow would hand to Ghostscript", _FORMAT, image(saved(drawn(), "EPS"))),
    Row("PSD", _FORMAT, image(b"8BPS\0\1" + b"\0" * 99)),
    Row("ICO", _FORMAT, image(saved(drawn(), "ICO"))),
    Row("GIF", _FORMAT, image(saved(drawn("P"), "GIF"))),
    Row("BMP", _FORMAT, image(saved(drawn(), "BMP"))),
    Row("TGA", _FORMAT, image(saved(drawn(), "TGA"))),
    Row("PPM", _FORMAT, image(saved(drawn(), "PPM"))),
    Row("JPEG 2000", _FORMAT, image(saved(drawn(), "JPEG2000"))),
    Row("HEIC", _FORMAT, image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50)),
    Row("MP4", _FORMAT, image(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 50)),
    Row("an office document", _FORMAT, image(_office())),
    Row("JPEG of 12 bits", _FORMAT,
        image(saved(drawn(), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"))),
    Row("TIFF of floating-point numbers", _FORMAT, image(saved(Image.new("F", (64, 64), 0.5), "TIFF"))),
    Row("TIFF of 64×64 px in a tile of a gigabyte", _FORMAT, image(_tile_bomb())),
    Row("PNG of 200,001 chunks", _FORMAT, image(png(before=chunk(b"teXt") * 200_001))),
    *(
        Row(f"{kind} cut in half", _TRUNCATED, image(lambda bench, kind=kind: _photo(bench, kind)[: 96 * 32]))
        for kind in ("PNG", "JPEG", "TIFF")
    ),
    Row("WebP cut short", _TRUNCATED, image(lambda bench: _photo(bench, "WEBP")[:-9])),
    Row("AVIF cut short", _TRUNCATED, image(lambda bench: _photo(bench, "AVIF")[:-9])),
    Row("PNG with missing rows, which Pillow takes for whole", _TRUNCATED, image(png(data=rows((40, 4), 2, 8)))),
    Row("PNG with a wrong checksum", _TRUNCATED, image(png()[:-16] + b"\0\0\0\0" + png()[-12:])),
    Row("PNG whose remark inflates to 100 MB", _TRUNCATED,
        image(png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 100_000_000))))),
    Row("PNG whose colour profile inflates to 100 MB", _TRUNCATED,
        image(png(before=chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 100_000_000))))),
    Row("JPEG signature and nothing else", _TRUNCATED, image(b"\xff\xd8\xff")),
    Row("50 kB that decode to 400 megapixels", _LARGE, image(_bomb(20_000))),
    Row("17 kB that decode to 144 megapixels", _LARGE, image(_bomb(12_000))),
    Row("less than 1 kB of AVIF that decode to 17 megapixels", _LARGE,
        image(lambda bench: saved(Image.new("RGB", (4096, 4096)), "AVIF", speed=10))),
    Row("one pixel more than the limit allows", _LARGE, image(lambda bench: saved(Image.new("1", (2000, 2001))))),
    Row("animated WebP", _ANIMATED, image(_frames("WEBP"))),
    Row("animated PNG", _ANIMATED, image(_frames("PNG"))),
    Row("AVIF sequence", _ANIMATED, image(_frames("AVIF"))),
    Row("TIFF of several pages", _ANIMATED, image(_frames("TIFF"))),
    Row("15×40 px", _SIZE, image(saved(drawn(size=(15, 40))))),
    Row("1×1 px", _SIZE, image(saved(Image.new("RGB", (1, 1))))),
    Row("32,769×16 px", _SIZE, image(saved(Image.new("1", (32_769, 16))))),
    Row("a file over the byte cap", "ObjectTooLarge", image(b"\x89PNG\r\n\x1a\n" + b"\0" * 8_000_000)),
    Row("a picture with a ZIP behind it", "", image(lambda bench: _photo(bench) + zipped())),
    Row("JPEG named .png: the bytes count", "", image(lambda bench: _photo(bench, "JPEG"), "really.png"),
        logged="is JPEG by its bytes"),
    Row("an EXIF block of rubbish", "", image(lambda bench: _photo(bench, exif=b"Exif\0\0rubbish")), warning="EXIF"),
    *(
        Row(f"{kind}, one of the five formats", "", image(lambda bench, kind=kind: _photo(bench, kind)))
        for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF")
    ),
    Row("mask that is text", _FORMAT, mask(b"hello, this is text")),
    Row("mask cut short", _TRUNCATED, mask(saved(Image.new("L", (96, 64), 255))[:-9])),
    Row("mask of another size", "MaskSizeMismatch", mask(Image.new("L", (95, 64), 255))),
    Row("mask turned by its EXIF to another size", "MaskSizeMismatch",
        mask(saved(Image.new("L", (96, 64), 255), exif=_TURNED))),
    Row("all-black mask", "MaskEmpty", mask(Image.new("L", (96, 64), 0))),
    Row("all-white mask of polarity black_edits", "MaskEmpty",
        mask(Image.new("L", (96, 64), 255), mask_polarity="black_edits")),
    Row("mask that keeps nothing", "", mask(Image.new("L", (96, 64), 255)), warning="keeps nothing"),
    Row("no mask, and an image without transparency", "InvalidParameter", lambda bench: {"mask": None}),
    Row("polarity transparent_edits, and a mask without transparency", "InvalidParameter",
        lambda bench: {"mask_polarity": "transparent_edits"}),
)  # fmt: skip
