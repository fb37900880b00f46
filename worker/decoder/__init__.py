"""Pictures that strangers made, decoded in processes of their own: under a limit of memory and time, without secrets.

A picture's header is judged before anything is decoded (`farm.pictures`), but what a decoder does with the rest is its
own affair: it may ask for a gigabyte, loop, or crash. In a process of its own such a file costs one job and not the
worker. The process has an empty environment and no more memory (RLIMIT_AS) and processor time (RLIMIT_CPU) for a
picture than its size explains; whatever ends it, the next picture gets a new one. Everything else that a stranger wrote
is read there, too: EXIF, XMP, and the colour profile, which is a program of sorts.

`processes.py` is the worker's side, `program.py` what runs in a process, `protocol.py` what lies between them.
"""

from worker.decoder.processes import Decoders
from worker.decoder.protocol import Header, Picture, Space

__all__ = ["Decoders", "Header", "Picture", "Space", "shared"]

shared = Decoders()
"""The worker's decoding processes: as many as are needed at once, made when they are."""
