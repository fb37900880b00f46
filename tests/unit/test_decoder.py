"""Pictures are decoded elsewhere: the same pixels come back, and what one does to its decoder stays with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps

from farm.errors import ImageTooLarge, ImageTruncated, InvalidInput, Resource, UnsupportedImageFormat
from farm.pictures import open_picture
from tests.unit.picture_files import WHOLE, drawn, saved
from worker.decoder import Decoders, Header, processes
from worker.images.raster import Form, raster

LIMIT = {"max_pixels": 10**8}
GOOD = saved(drawn(), "PNG")


@pytest.fixture(scope="module")
def decoders():
    return Decoders()


def image(picture) -> Image.Image:
    """Pillow's picture of 8 bits a channel."""
    header = picture.header
    mode = Form(header.space, header.alpha, header.bits).mode
    return Image.frombytes(mode, (header.width, header.height), bytes(picture.samples))


def pid_of(decoders: Decoders) -> int:
    """Of the one process that is idle."""
    (process,) = decoders._idle
    return process.pid


@pytest.mark.parametrize("name", WHOLE)
def test_the_samples_are_those_that_pillow_decodes_here(decoders, name):
    data, kind, mode, _ = WHOLE[name]
    there, here = decoders.decode(data, **LIMIT), ImageOps.exif_transpose(open_picture(data, kind))
    assert there.header.format == kind
    assert len(there.header.warnings) == ("thumbnail" in name)  # whose block in the test is none
    if mode == "I;16":
        assert (there.header.space, there.header.alpha, there.header.bits) == ("grey", False, 16)
        assert bytes(there.samples) == here.tobytes()
        return
    wanted = {"1": "L", "P": "RGB"}.get(mode, mode)
    assert image(there).mode == wanted
    assert ImageChops.difference(image(there), here.convert(wanted)).getbbox(alpha_only=False) is None


def test_a_palette_with_a_transparent_colour_is_transparent(decoders):
    assert decoders.decode(saved(drawn("P"), "PNG", transparency=7), **LIMIT).header.alpha


def test_an_exif_block_that_cannot_be_read_turns_nothing_and_is_said(decoders):
    for kind in ("PNG", "WEBP"):
        header = decoders.decode(saved(drawn(), kind, exif=b"Exif\0\0rubbish"), **LIMIT).header
        assert (header.width, header.height, header.exif) == (61, 43, b"")
        assert len(header.warnings) == 1 and "EXIF" in header.warnings[0]


def test_one_process_serves_many_pictures_good_and_bad(decoders):
    decoders.decode(GOOD, **LIMIT)
    first = pid_of(decoders)
    for data, error in (
        (b"text, no picture", UnsupportedImageFormat),
        (GOOD[:-20], ImageTruncated),
        (b"", InvalidInput),
    ):
        with pytest.raises(error):
            decoders.decode(data, **LIMIT)
    with pytest.raises(ImageTooLarge, match="61×43"):
        decoders.decode(GOOD, max_pixels=100)
    assert decoders.decode(GOOD, **LIMIT).header.width == 61
    assert pid_of(decoders) == first


def test_many_threads_get_each_their_own_picture(decoders):
    pictures = [Image.new("RGB", (400 + n, 300), (n, n, n)) for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: decoders.decode(saved(one, "JPEG"), **LIMIT).header.width, pictures))
    assert found == [one.width for one in pictures]
    assert 1 <= len(decoders._idle) <= 4


# What a file may do to its decoder


def faulty(monkeypatch, code: str) -> Decoders:
    """Decoders whose processes run `code` before they serve."""
    program = (sys.executable, "-c", f"import os, signal, sys\nimport worker.decoder.program as d\n{code}\nd.main()")
    monkeypatch.setattr(processes, "_PROGRAM", program)
    return Decoders()


def once(act: str) -> str:
    """Code that does `act` when a file of more than 10 kB is opened."""
    lines = (
        "was = d.samples.open_picture",
        "def hit(data, name):",
        f"    if len(data) > 10_000: {act}",
        "    return was(data, name)",
        "d.samples.open_picture = hit",
    )
    return "\n".join(lines)


def said(**fields) -> bytes:
    """The line before a picture, with some of it wrong."""
    header = Header(40, 30, "rgb", False, 8, "PNG")
    return json.dumps({**asdict(header), "icc": 0, "exif": 0, "xmp": 0, **fields}).encode() + b"\n"


BIG = saved(Image.effect_noise((200, 200), 90), "PNG")


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        (once("bytearray(200 << 20)"), ImageTooLarge, "memory or time"),
        ("d._SECONDS_PER_PIXEL = d._SPARE_SECONDS = 0\n" + once("[0 for _ in iter(int, 1)]"), ImageTooLarge, "time"),
        (once("os.kill(os.getpid(), signal.SIGSEGV)"), ImageTruncated, "does not survive"),
        (once("os._exit(0)"), ImageTruncated, "does not survive"),
        (once("sys.exit('bye')"), ImageTruncated, "does not survive"),
        (once("os.write(3, b'{}\\n')"), ImageTruncated, "does not survive"),
        (once("os.write(3, b'rubbish\\n')"), ImageTruncated, "does not survive"),
        (once("""os.write(3, b'{"error":"WorkerFatal","message":""}\\n')"""), ImageTruncated, "does not survive"),
        (once(f"os.write(3, {said(width=99_999, height=99_999)!r})"), ImageTruncated, "does not survive"),
        (once(f"os.write(3, {said(space='mauve')!r})"), ImageTruncated, "does not survive"),
        (once(f"os.write(3, {said(bits=64)!r})"), ImageTruncated, "does not survive"),
        (once(f"os.write(3, {said(icc=1 << 40)!r})"), ImageTruncated, "does not survive"),
    ],
    ids=[
        "hungry",
        "endless",
        "crash",
        "gone",
        "quits",
        "empty word",
        "rubbish",
        "not its error",
        "not its size",
        "no space",
        "no depth",
        "no length",
    ],
)
def test_whatever_it_does_the_next_picture_is_decoded(monkeypatch, code, error, told):
    decoders = faulty(monkeypatch, code)
    for _ in range(2):
        assert decoders.decode(GOOD, **LIMIT).header.width == 61
        with pytest.raises(error, match=told):
            decoders.decode(BIG, **LIMIT)
        assert decoders._idle == []


def test_a_legal_picture_does_not_come_near_its_limit(decoders):
    """The hungriest kind there is: four channels, without loss, through a canvas."""
    noise = Image.effect_noise((2500, 2500), 90).convert("RGBA")
    data = saved(noise, "WEBP", lossless=True, method=0, quality=0)
    assert decoders.decode(data, **LIMIT).header.width == 2500


def test_a_process_that_is_killed_between_pictures_is_replaced(decoders):
    decoders.decode(GOOD, **LIMIT)
    while decoders._idle[1:]:
        decoders._idle.pop().kill()
    os.kill(pid_of(decoders), signal.SIGKILL)
    for _ in range(3):
        decoders.decode(GOOD, **LIMIT)


def test_one_that_is_killed_at_every_picture_is_no_fault_of_the_picture(monkeypatch):
    with pytest.raises(Resource, match="enough memory"):
        faulty(monkeypatch, once("os.kill(os.getpid(), signal.SIGKILL)")).decode(BIG, **LIMIT)


def test_it_knows_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    decoders = Decoders()
    decoders.decode(GOOD, **LIMIT)
    assert b"hush" not in Path(f"/proc/{pid_of(decoders)}/environ").read_bytes()


def test_it_ends_with_its_worker_however_that_ends():
    code = "import os, sys, time\nfrom tests.unit.test_decoder import *\nd = Decoders()\nd.decode(GOOD, **LIMIT)\n"
    code += "print(pid_of(d), flush=True)\ntime.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as worker:
        assert worker.stdout is not None
        child = Path(f"/proc/{int(worker.stdout.readline())}")
        assert child.exists()
        worker.kill()
    end = time.monotonic() + 10
    while child.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not child.exists()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=4)
)
def test_whatever_the_damage_a_picture_or_an_error_of_the_farms_comes_back(decoders, name, patches):
    data = WHOLE[name][0]
    for where, patch in patches:
        place = int(where * len(data))
        data = data[:place] + patch + data[place + len(patch) :]
    try:
        picture = decoders.decode(data, **LIMIT)
    except InvalidInput as error:
        assert error.message.endswith(".")
    else:
        assert raster(picture).size == (picture.header.width, picture.header.height)
