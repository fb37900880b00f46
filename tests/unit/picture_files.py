"""Picture files for the tests: whole ones of every kind, and a writer of PNGs for those that are not."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from PIL import Image, ImageDraw


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
