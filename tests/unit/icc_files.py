"""Small colour profiles (ICC.1:2001-04) for the tests: of grey, of a wide RGB, and of a plain CMYK."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms


def profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"test", 0x02400000, kind, space, pcs, bytes(12), b"acsp")
    return (head + bytes(28) + xyz(0.9642, 1, 0.8249)[8:]).ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def named(name: str) -> dict[bytes, bytes]:
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    return {b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(0.9642, 1, 0.8249)}


def table(inputs: int, outputs: int, grid: int, values: np.ndarray) -> bytes:
    """A lut8Type with straight curves."""
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    head = b"mft1\0\0\0\0" + bytes([inputs, outputs, grid, 0]) + matrix
    return head + ramp * inputs + values.astype(np.uint8).tobytes() + ramp * outputs


def cmyk() -> bytes:
    """The plain complement, in Lab."""
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(srgb, lab, "RGB", "LAB", renderingIntent=1)
    from_lab = ImageCms.buildTransform(lab, srgb, "LAB", "RGB", renderingIntent=1)
    steps = np.linspace(0, 1, 5)
    c, m, y, k = np.meshgrid(steps, steps, steps, steps, indexing="ij")
    colours = np.stack([255 * (1 - ink) * (1 - k) for ink in (c, m, y)], -1).reshape(1, -1, 3)
    there = np.asarray(ImageCms.applyTransform(Image.fromarray(np.rint(colours).astype(np.uint8)), to_lab))
    values = there.astype(np.int16)
    values[..., 1:] = (there[..., 1:].view(np.int8).astype(np.int16)) + 128  # Pillow's a and b are signed
    sides = np.linspace(0, 255, 9)
    grid = np.stack(np.meshgrid(sides, sides, sides, indexing="ij"), -1).reshape(1, -1, 3)
    signed = np.rint(grid).astype(np.int16)
    signed[..., 1:] -= 128
    picture = Image.frombytes("LAB", (signed.shape[1], 1), (signed & 255).astype(np.uint8).tobytes())
    back = 255 - np.asarray(ImageCms.applyTransform(picture, from_lab)).reshape(-1, 3).astype(np.int16)
    black = back.min(axis=1, keepdims=True)
    inks = np.rint((back - black) * 255 / np.maximum(255 - black, 1))
    return profile(
        b"CMYK", b"Lab ", b"prtr",
        {
            **named("plain CMYK"),
            b"A2B0": table(4, 3, 5, values),
            b"B2A0": table(3, 4, 9, np.concatenate([inks, black], axis=1)),
        },
    )  # fmt: skip


GREY = profile(b"GRAY", b"XYZ ", b"mntr", {**named("grey of gamma 1.8"), b"kTRC": gamma(1.8)})
WIDE = profile(
    b"RGB ", b"XYZ ", b"mntr",
    {
        **named("a wide RGB"),
        b"rXYZ": xyz(0.6097, 0.3111, 0.0195), b"gXYZ": xyz(0.2053, 0.6257, 0.0609),
        b"bXYZ": xyz(0.1492, 0.0632, 0.7446),
        b"rTRC": gamma(2.2), b"gTRC": gamma(2.2), b"bTRC": gamma(2.2),
    },
)  # fmt: skip
CMYK = cmyk()


def loads(data: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(data))
