"""The worker's side: processes that decode, kept warm, replaced when they end, and never quite believed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from farm.errors import BY_CODE, FarmError, ImageTooLarge, ImageTruncated, InvalidInput, Resource
from worker.decoder.protocol import BLOCKS, CHANNELS, STRIP_BYTES, Header, Picture, Space, exactly, read_head, send

_PROGRAM = (sys.executable, "-P", "-m", "worker.decoder.program")
_PIPE_BYTES = 1 << 20  # what Linux gives without asking for more rights
_MOST_BLOCK = 16 << 20  # of a profile or a packet
TOO_HUNGRY = 77  # the exit code of a process that ran out of its memory

T = TypeVar("T")
Strips = Iterator[bytes]
Progress = Callable[[], object]


def _none() -> None:
    """No progress to tell of."""


class Decoders:
    """As many decoding processes as pictures are decoded at once; made when needed, ended with this one."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def decode(self, data: bytes, *, max_pixels: int, progress: Progress = _none) -> Picture:
        """The picture in a file's bytes. `progress` is called as strips of it arrive.

        Raises what `farm.pictures.probe` does; ImageTooLarge also for a file whose decoding asks for more memory or
        time than a picture of its size does, ImageTruncated for one that cannot be decoded, and Resource when the
        machine has no memory left for it.
        """
        return self.stream(data, lambda header, strips: _collected(header, strips, progress), max_pixels=max_pixels)

    def stream(self, data: bytes, consume: Callable[[Header, Strips], T], *, max_pixels: int) -> T:
        """What `consume` makes of a picture that it gets strip by strip: whole rows, from the top.

        `consume` may be called a second time when the first process is killed. Raises as `decode` does.
        """
        return self._asked({"bytes": len(data), "max_pixels": max_pixels}, (data,), _picture(max_pixels, consume))

    def convert(self, pixels: bytes, size: tuple[int, int], icc: bytes, space: Space, *, to_srgb: bool) -> bytes:
        """Pixels of 8 bits, without alpha, from the profile's colours to sRGB or the other way.

        Raises ImageTruncated when the profile cannot be used after all.
        """
        width, height = size
        channels = 3 if to_srgb else CHANNELS[space]
        head = {"bytes": len(pixels), "profile": len(icc), "size": size, "space": space, "to_srgb": to_srgb}

        def read(head: dict[str, Any], pipe: BinaryIO) -> bytes:
            return exactly(pipe, width * height * channels)

        return self._asked(head, (icc, pixels), read)

    def _asked(
        self, head: dict[str, Any], parts: tuple[bytes, ...], read: Callable[[dict[str, Any], BinaryIO], T]
    ) -> T:
        try:
            return self._attempt(head, parts, read)
        except Resource:  # maybe it was killed before, while it was idle
            return self._attempt(head, parts, read)

    def _attempt(
        self, head: dict[str, Any], parts: tuple[bytes, ...], read: Callable[[dict[str, Any], BinaryIO], T]
    ) -> T:
        with self._process() as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                send(process.stdin, head, parts)
                answer = read_head(process.stdout)
                _raise_its(answer)
                return read(answer, process.stdout)
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
                env={"PYTHONPATH": str(Path(__file__).parents[2])},
                pipesize=_PIPE_BYTES,
                start_new_session=True,  # Ctrl-C is for the worker, who finishes what it has begun
            )
        try:
            yield process
        except InvalidInput:
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


def _raise_its(head: dict[str, Any]) -> None:
    if "error" not in head:
        return
    error = BY_CODE.get(head["error"], InvalidInput)
    if not issubclass(error, InvalidInput):
        raise ValueError("not an error of a picture")
    raised = error.__new__(error)
    Exception.__init__(raised, str(head["message"]))
    raise raised


def _picture(max_pixels: int, consume: Callable[[Header, Strips], T]) -> Callable[[dict[str, Any], BinaryIO], T]:
    """Reads a picture. The process may have fallen to a hostile file by now, so its word is checked."""

    def read(head: dict[str, Any], pipe: BinaryIO) -> T:
        blocks = {}
        for name in BLOCKS:
            if not 0 <= head[name] <= _MOST_BLOCK:
                raise ValueError("not a block that was asked for")
            blocks[name] = exactly(pipe, head[name])
        dpi, key = head["dpi"], head["key"]
        header = Header(
            **{
                **head,
                **blocks,
                "dpi": dpi and (float(dpi[0]), float(dpi[1])),
                "key": key and tuple(int(value) for value in key),
                "warnings": tuple(str(warning) for warning in head["warnings"]),
            }
        )
        sides = header.width > 0 and header.height > 0 and header.width * header.height <= max_pixels
        if not sides or header.bits not in (8, 16) or (key and len(header.key) != header.channels):
            raise ValueError("not a picture that was asked for")
        return consume(header, _strips(pipe, header))

    return read


def _strips(pipe: BinaryIO, header: Header) -> Strips:
    rows = max(1, STRIP_BYTES // header.row_bytes)
    for top in range(0, header.height, rows):
        yield exactly(pipe, min(rows, header.height - top) * header.row_bytes)


def _collected(header: Header, strips: Strips, progress: Progress) -> Picture:
    samples, place = bytearray(header.height * header.row_bytes), 0
    for strip in strips:
        samples[place : place + len(strip)] = strip
        place += len(strip)
        progress()
    return Picture(header, samples)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """Of a process that has closed its pipes, and so is about to end."""
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _death(code: int) -> FarmError:
    """Why the process that was decoding ended with `code`."""
    if code in (TOO_HUNGRY, -signal.SIGXCPU):
        return ImageTooLarge(
            "The picture asks for more memory or time to be decoded than one of its size does; save it again, plainly."
        )
    if code == -signal.SIGKILL:  # which no file brings about: the kernel needed the memory
        return Resource("The process that decoded the picture was killed; has the machine enough memory?")
    return ImageTruncated("The picture is damaged in a way that its decoder does not survive; save it again.")
