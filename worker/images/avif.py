"""AVIF (AV1 Image File Format v1.2.0) without loss: red, green and blue themselves are coded, not luma and chroma.

Pillow writes no such AVIF, and what does (libavif, in imagecodecs) is given nothing but samples: the colour profile,
EXIF and XMP are put into the file here, as ISO/IEC 14496-12 boxes of its `meta`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imagecodecs import avif_encode

from worker.images.raster import Samples

_SPEED = 6  # of 0 to 10
_OFFSETS_OF_4_BYTES = 0x4400  # iloc's sizes of offset, length, base offset


def encoded(samples: Samples) -> bytes:
    """The plain file of [height, width] or [height, width, 3 or 4] samples of 8 bits."""
    return bytes(avif_encode(samples, level=100, speed=_SPEED, numthreads=1))


def with_blocks(data: bytes, *, icc: bytes, exif: bytes, xmp: bytes) -> bytes:
    """The file with its colour profile, EXIF and XMP. Raises ValueError for a file of another layout than libavif's."""
    (head, meta, *rest) = list(_boxes(data, 0))
    children = dict(_boxes(meta[1], 4))
    payloads = [(b"Exif\0", bytes(4) + exif)] if exif else []  # four bytes: where in it the TIFF header lies
    payloads.append((b"mime\0application/rdf+xml\0", xmp))
    primary = struct.unpack_from(">H", children[b"pitm"], 4)[0]
    version, sizes, count = struct.unpack_from(">IHH", children[b"iloc"])
    if (head[0], meta[0], version, sizes) != (b"ftyp", b"meta", 0, _OFFSETS_OF_4_BYTES):
        raise ValueError("not an AVIF as libavif writes it")
    items = range(count + 1, count + 1 + len(payloads))
    _describe(children, primary, items, [kind for kind, _ in payloads])
    if icc:
        _colour(children, primary, icc)
    places = [struct.unpack_from(">HHHII", children[b"iloc"], 8 + 14 * item) for item in range(count)]

    def located(shift: int, end: int) -> bytes:
        table = [(item, reference, one, offset + shift, size) for item, reference, one, offset, size in places]
        for item, (_, payload) in zip(items, payloads, strict=True):
            table.append((item, 0, 1, end, len(payload)))
            end += len(payload)
        body = struct.pack(">IHH", 0, _OFFSETS_OF_4_BYTES, len(table))
        return body + b"".join(struct.pack(">HHHII", *entry) for entry in table)

    def written(shift: int, end: int) -> bytes:
        children[b"iloc"] = located(shift, end)
        return _box(b"meta", meta[1][:4] + b"".join(_box(kind, body) for kind, body in children.items()))

    grown = len(written(0, 0)) - len(_box(*meta))
    end = len(data) + grown + 8  # of a last box, which holds the payloads
    start = _box(*head) + written(grown, end)
    return start + b"".join(_box(*box) for box in rest) + _box(b"mdat", b"".join(payload for _, payload in payloads))


def _boxes(data: bytes, place: int) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of each box from `place`."""
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if size < 8 or place + size > len(data):
            raise ValueError("not an AVIF as libavif writes it")
        yield kind, data[place + 8 : place + size]
        place += size


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _describe(children: dict[bytes, bytes], primary: int, items: range, kinds: list[bytes]) -> None:
    """Enter the new items in `iinf`, and in `iref` as describing the picture."""
    entries = children[b"iinf"]
    (count,) = struct.unpack_from(">H", entries, 4)
    entries = entries[:4] + struct.pack(">H", count + len(kinds)) + entries[6:]
    references = children.get(b"iref", bytes(4))
    for item, kind in zip(items, kinds, strict=True):
        name, more = kind[:4], kind[4:]
        entries += _box(b"infe", struct.pack(">IHH", 2 << 24, item, 0) + name + more)
        references += _box(b"cdsc", struct.pack(">HHH", item, 1, primary))
    children |= {b"iinf": entries, b"iref": references}


def _colour(children: dict[bytes, bytes], primary: int, icc: bytes) -> None:
    """Add the profile to the properties, and to those of the picture."""
    properties = dict(_boxes(children[b"iprp"], 0))
    number = len(list(_boxes(properties[b"ipco"], 0))) + 1
    properties[b"ipco"] += _box(b"colr", b"prof" + icc)
    links = properties[b"ipma"]
    flags, count = struct.unpack_from(">II", links)
    result, place = links[:8], 8
    for _ in range(count):
        item, linked = struct.unpack_from(">HB", links, place)
        own = links[place + 3 : place + 3 + linked]
        place += 3 + linked
        if item == primary:
            own += bytes([number])
        result += struct.pack(">HB", item, len(own)) + own
    if flags or number > 127 or place != len(links):
        raise ValueError("not an AVIF as libavif writes it")
    properties[b"ipma"] = result
    children[b"iprp"] = b"".join(_box(kind, body) for kind, body in properties.items())
