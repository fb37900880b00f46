"""What runs in a decoding process: it serves requests over two pipes, and ends with them."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from farm.errors import ImageTruncated, InvalidInput
from farm.pictures import probe
from worker.decoder import exif, profiles, samples, xmp
from worker.decoder.processes import TOO_HUNGRY
from worker.decoder.protocol import BLOCKS, Header, exactly, read_head, send

# The hungriest legal file (a lossless WebP with alpha) took 19 bytes a pixel, the slowest (a PNG) 0.07 s a megapixel;
# a picture of 16 bits is decoded twice, and one that is to be turned is held twice.
_BYTES_PER_PIXEL, _SPARE_BYTES = 40, 64 << 20
_SECONDS_PER_PIXEL, _SPARE_SECONDS = 1e-6, 10
_MOST_BLOCK = 4 << 20  # bytes of EXIF or XMP that are carried on


def main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that a library prints comes between
        _serve(sys.stdin.buffer, pipe)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            head = read_head(requests)
        except EOFError:
            return
        profile = exactly(requests, head.get("profile", 0))
        data = exactly(requests, head["bytes"])
        try:
            if "profile" in head:
                _convert(head, profile, data, answers)
            else:
                _decode(head["max_pixels"], data, answers)
        except MemoryError:  # what is left of this process may lack anything
            os._exit(TOO_HUNGRY)
        except InvalidInput as error:
            send(answers, {"error": error.code, "message": error.message})


def _convert(head: dict[str, Any], profile: bytes, pixels: bytes, answers: BinaryIO) -> None:
    width, height = head["size"]
    _limit(len(pixels), width * height)
    try:
        converted = profiles.converted(pixels, (width, height), profile, head["space"], to_srgb=head["to_srgb"])
    except profiles.UNUSABLE:
        raise ImageTruncated("The picture's colour profile is damaged; save the picture again without it.") from None
    send(answers, {}, (converted,))


def _decode(max_pixels: int, data: bytes, answers: BinaryIO) -> None:
    _limit(len(data), max_pixels)
    info = probe(data, max_pixels=max_pixels)
    _limit(len(data), info.width * info.height)
    read = samples.read(data, info)
    warnings = list(read.warnings)
    icc = read.info.get("icc_profile") or b""
    if icc and not profiles.usable(icc, read.space):
        warnings.append("Its colour profile cannot be used and is left out: the colours are taken as sRGB.")
        icc = b""
    gamma = read.info.get("gamma")
    if gamma and not icc and "srgb" not in read.info and abs(gamma - 1 / 2.2) > 0.01:
        warnings.append(f"Its gamma of {gamma:.4g} is left out: the colours are taken as sRGB.")
    header = Header(
        width=read.size[0],
        height=read.size[1],
        space=read.space,
        alpha=read.alpha,
        bits=read.bits,
        format=info.format,
        icc=icc,
        exif=_exif(read, data, info.format, warnings),
        xmp=_xmp(read, warnings),
        dpi=_dpi(read),
        premultiplied=read.premultiplied,
        key=read.key,
        warnings=tuple(warnings),
    )
    blocks = [getattr(header, name) for name in BLOCKS]
    lengths = {name: len(block) for name, block in zip(BLOCKS, blocks, strict=True)}
    send(answers, {**asdict(header), **lengths}, (part for parts in (blocks, read.strips()) for part in parts))


def _exif(read: samples.Samples, data: bytes, name: str, warnings: list[str]) -> bytes:
    try:
        block = exif.of_tiff(data) if name == "TIFF" else read.info.get("exif") or b""
        block = exif.upright(block, read.sideways)
    except exif.UNREADABLE:
        block = b""
        if not any("EXIF" in warning for warning in warnings):
            warnings.append("Its EXIF block cannot be read and is left out.")
    if len(block) > _MOST_BLOCK:
        warnings.append("Its EXIF block is too large and is left out.")
        return b""
    return block


def _xmp(read: samples.Samples, warnings: list[str]) -> bytes:
    packet = read.info.get("xmp") or b""
    if len(packet) <= _MOST_BLOCK:
        try:
            return xmp.labelled(packet)
        except xmp.UNREADABLE:
            pass
    warnings.append("Its XMP packet cannot be read, or is too large, and is replaced.")
    return xmp.labelled(b"")


def _dpi(read: samples.Samples) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in read.info["dpi"])
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
    if not (0 < across < 1e6 and 0 < down < 1e6):
        return None
    return (down, across) if read.sideways else (across, down)


def _limit(size: int, pixels: int) -> None:
    """From here on, what a file of `size` bytes and `pixels` px may take, beside what is taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + 3 * size + _BYTES_PER_PIXEL * pixels + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + _SPARE_SECONDS + _SECONDS_PER_PIXEL * pixels) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
