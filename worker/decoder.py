"""Pictures that strangers made, decoded in processes of their own: under a limit of memory and time, without secrets.

A picture's header is judged before anything is decoded (`farm.pictures`), but what a decoder does with the rest is its
own affair: it may ask for a gigabyte, loop, or crash. In a process of its own such a file costs one job and not the
worker. The process has an empty environment and no more memory (RLIMIT_AS) and processor time (RLIMIT_CPU) for a
picture than its size explains; whatever ends it, the next picture gets a new one.

It is this file run as a program, over two pipes, and ends with them. A request is a line of JSON and the file's bytes,
an answer a line of JSON and the pixels, row by row. At 1 megapixel the way there and back costs some milliseconds.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps

from farm.errors import BY_CODE, FarmError, ImageTooLarge, ImageTruncated, InvalidInput, Resource
from farm.image_structure import UNREADABLE, open_picture
from farm.pictures import Format, probe

# The hungriest legal file (a lossless WebP with alpha) took 19 bytes a pixel, the slowest (a PNG) 0.07 s a megapixel.
_BYTES_PER_PIXEL, _SPARE_BYTES = 40, 64 << 20
_SECONDS_PER_PIXEL, _SPARE_SECONDS = 1e-6, 10
_PROGRAM = (sys.executable, "-P", "-m", "worker.decoder")
_MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # what comes back, and its bytes a pixel
_STRIP_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20  # what Linux gives without asking for more rights


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, in L, RGB or (where any of it is transparent) RGBA."""

    image: Image.Image
    format: Format
    warnings: tuple[str, ...] = ()


# In the worker


class Decoders:
    """As many decoding processes as pictures are decoded at once; made when needed, ended with this one."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def decode(self, data: bytes, *, max_pixels: int) -> Picture:
        """The picture in a file's bytes.

        Raises what `farm.pictures.probe` does; ImageTooLarge also for a file whose decoding asks for more memory or
        time than a picture of its size does, ImageTruncated for one that cannot be decoded, and Resource when the
        machine has no memory left for it.
        """
        try:
            return self._attempt(data, max_pixels)
        except Resource:  # maybe it was killed before, while it was idle
            return self._attempt(data, max_pixels)

    def _attempt(self, data: bytes, max_pixels: int) -> Picture:
        with self._process() as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                _send(process.stdin, {"bytes": len(data), "max_pixels": max_pixels}, data)
                return _answer(process.stdout, max_pixels)
            except (OSError, EOFError):
                raise _death(_exit_code(process)) from None
            except (LookupError, TypeError, ValueError):  # it is no longer itself
                process.kill()
                process.wait()
                raise _death(1) from None

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process for one picture; kept for the next one if it survives it in good order."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                _PROGRAM,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libtiff prints what a file tells it to
                env={"PYTHONPATH": str(Path(__file__).parents[1])},
                pipesize=_PIPE_BYTES,
                start_new_session=True,  # Ctrl-C is for the worker, who finishes what it has begun
            )
        try:
            yield process
        except FarmError:
            self._keep(process)
            raise
        except BaseException:
            process.kill()
            self._keep(process)
            raise
        self._keep(process)

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            with self._lock:
                self._idle.append(process)
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not written any more
                pipe.close()


def _answer(pipe: BinaryIO, max_pixels: int) -> Picture:
    """What a process says. It may have fallen to a hostile file by now, so its word is checked."""
    head = _head(pipe)
    if "error" in head:
        error = BY_CODE.get(head["error"], InvalidInput)
        if not issubclass(error, InvalidInput):
            raise ValueError("not an error of a picture")
        raised = error.__new__(error)
        Exception.__init__(raised, str(head["message"]))
        raise raised
    mode, (width, height) = str(head["mode"]), head["size"]
    if mode not in _MODES or not 0 < int(width) * int(height) <= max_pixels:
        raise ValueError("not a picture that was asked for")
    pixels = _exactly(pipe, int(width) * int(height) * _MODES[mode])
    return Picture(Image.frombytes(mode, (width, height), pixels), head["format"], tuple(head["warnings"]))


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Of a process that has closed its pipes, and so is about to end."""
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _death(code: int) -> FarmError:
    """Why the process that was decoding ended with `code`."""
    if code in (_TOO_HUNGRY, -signal.SIGXCPU):
        return ImageTooLarge(
            "The picture asks for more memory or time to be decoded than one of its size does; save it again, plainly."
        )
    if code == -signal.SIGKILL:  # which no file brings about: the kernel needed the memory
        return Resource("The process that decoded the picture was killed; has the machine enough memory?")
    return ImageTruncated("The picture is damaged in a way that its decoder does not survive; save it again.")


# Between the two


def _send(pipe: BinaryIO, head: dict[str, Any], *parts: bytes) -> None:
    pipe.write(json.dumps(head).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _head(pipe: BinaryIO) -> dict[str, Any]:
    line = pipe.readline(1 << 16)
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("not a head")
    return head


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


# In the process

_TOO_HUNGRY = 77  # its exit code


def main() -> None:
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing that a library prints comes between
        _serve(sys.stdin.buffer, pipe)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        try:
            head = _head(requests)
        except EOFError:
            return
        data = _exactly(requests, head["bytes"])
        try:
            picture = _decoded(data, head["max_pixels"])
        except MemoryError:  # what is left of this process may lack anything
            os._exit(_TOO_HUNGRY)
        except InvalidInput as error:
            _send(answers, {"error": error.code, "message": error.message})
            continue
        image = picture.image
        _send(
            answers,
            {"mode": image.mode, "size": image.size, "format": picture.format, "warnings": picture.warnings},
            *_strips(image),
        )


def _decoded(data: bytes, max_pixels: int) -> Picture:
    _limit(len(data), max_pixels)
    info = probe(data, max_pixels=max_pixels)
    _limit(len(data), info.width * info.height)
    try:
        image: Image.Image = open_picture(data, info.format)
        image.load()
    except (*UNREADABLE, EOFError) as error:
        raise ImageTruncated(
            f"The {info.format} file cannot be decoded ({str(error)[:80]}); upload the whole file again."
        ) from None
    warnings: tuple[str, ...] = ()
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to white instead of scaling
        image = image.convert("I").point(lambda v: v * (1 / 257)).convert("L")
    try:
        image = ImageOps.exif_transpose(image)
    except UNREADABLE:
        warnings = ("Its EXIF block cannot be read: the picture is taken as it is stored, not turned.",)
    if image.has_transparency_data:
        return Picture(image.convert("RGBA"), info.format, warnings)
    return Picture(image.convert("L" if image.mode in ("1", "L") else "RGB"), info.format, warnings)


def _strips(image: Image.Image) -> Iterator[bytes]:
    rows = max(1, _STRIP_BYTES // (image.width * _MODES[image.mode]))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))).tobytes()


def _limit(size: int, pixels: int) -> None:
    """From here on, what decoding a file of `size` bytes and `pixels` px may take, beside what is taken already."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + 3 * size + _BYTES_PER_PIXEL * pixels + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + _SPARE_SECONDS + _SECONDS_PER_PIXEL * pixels) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
