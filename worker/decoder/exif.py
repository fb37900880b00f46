"""EXIF (CIPA DC-008) without rewriting it: the block's few bytes that are no longer true are changed in their place.

A block is a little TIFF file. Makers' notes hold offsets that nobody can follow, so whatever moves a block's parts may
break them; only between TIFF, where EXIF's tables lie among the picture's, and the other formats there is no way
around it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

UNREADABLE = (struct.error, ValueError, LookupError, OverflowError)
"""What comes of a block that is none."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
POINTERS = frozenset({0x8769, 0x8825, 0xA005})  # to the tables of EXIF, GPS and interoperability
ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0xA002, 0xA003
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_MOST_ENTRIES = 2_000

# What in a TIFF's first table describes how its pixels are stored, and what is kept of it elsewhere (XMP 700, ICC
# 34675, resolution 282, 283, 296); IPTC's and Photoshop's blocks (33723, 34377) hold previews and are not kept.
STRUCTURE = frozenset({
    *range(254, 260), 262, 263, 264, 265, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 282, 283, 284, 288, 289, 290,
    291, 292, 293, 296, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340, 341,
    342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 559, 700, 33723, 34377, 34675,
})  # fmt: skip


@dataclass
class Table:
    """Tag → (type, count, value's bytes), and under a pointer's tag the table it leads to."""

    entries: dict[int, tuple[int, int, bytes | memoryview]] = field(default_factory=dict)
    tables: dict[int, Table] = field(default_factory=dict)


def byte_order(block: bytes) -> str:
    """struct's sign for it. Raises ValueError for what is no TIFF structure."""
    if block[:4] in (b"II*\0", b"II+\0"):
        return "<"
    if block[:4] in (b"MM\0*", b"MM\0+"):
        return ">"
    raise ValueError("not a TIFF structure")


def _entries(block: bytes, at: int, order: str, big: bool = False) -> Iterator[tuple[int, int, int, int, int]]:
    """(tag, type, count, where its value lies, its length in bytes) of the table at `at`; only what lies inside."""
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), block, at)
    if count > _MOST_ENTRIES:
        raise ValueError("too many entries")
    place, step, inline = at + (8 if big else 2), (20 if big else 12), (8 if big else 4)
    for entry in range(place, place + count * step, step):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), block, entry)
        where, size = entry + step - inline, number * SIZES.get(kind, 0)
        if size > inline:
            (where,) = struct.unpack_from(order + ("Q" if big else "I"), block, where)
        if size and where + size <= len(block):
            yield tag, kind, number, where, size


def _number(block: bytes, order: str, kind: int, where: int) -> int:
    return int(struct.unpack_from(order + {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}[kind], block, where)[0])


def upright(block: bytes, sideways: bool) -> bytes:
    """The block of a picture that has been turned upright: orientation 1, no thumbnail of how it was before.

    `sideways`: width and height have changed places. Raises one of UNREADABLE.
    """
    if not block:
        return b""
    changed = bytearray(block.removeprefix(b"Exif\0\0"))
    order = byte_order(changed)
    (at,) = struct.unpack_from(order + "I", changed, 4)
    for tag, kind, _, where, _ in _entries(changed, at, order):
        if tag == ORIENTATION and kind == 3:
            struct.pack_into(order + "H", changed, where, 1)
        elif tag == 0x8769 and sideways:
            _exchange_sides(changed, _number(changed, order, kind, where), order)
    (count,) = struct.unpack_from(order + "H", changed, at)
    _wipe_thumbnail(changed, at + 2 + 12 * count, order)
    read(changed)  # whoever writes a TIFF of it will have to
    return bytes(changed)


def _exchange_sides(block: bytearray, at: int, order: str) -> None:
    sides = {tag: (kind, where) for tag, kind, _, where, _ in _entries(block, at, order) if tag in (_WIDTH, _HEIGHT)}
    if len(sides) == 2 and sides[_WIDTH][0] == sides[_HEIGHT][0]:
        width, height = (slice(where, where + 4) for _, where in (sides[_WIDTH], sides[_HEIGHT]))
        block[width], block[height] = block[height], block[width]


def _wipe_thumbnail(block: bytearray, link: int, order: str) -> None:
    if link + 4 > len(block):
        return
    (at,) = struct.unpack_from(order + "I", block, link)
    if not at:
        return
    struct.pack_into(order + "I", block, link, 0)
    found = {tag: (kind, where) for tag, kind, _, where, _ in _entries(block, at, order)}
    if _THUMBNAIL in found and _THUMBNAIL_BYTES in found:
        start, size = (_number(block, order, *found[tag]) for tag in (_THUMBNAIL, _THUMBNAIL_BYTES))
        size = max(0, min(size, len(block) - start))
        block[start : start + size] = bytes(size)


def read(block: bytes) -> Table:
    """The first table of a block or of a TIFF file, and the tables that it points to.

    Raises one of UNREADABLE, also where values share their bytes: together they are no longer than the block.
    """
    order, big = byte_order(block), b"+" in block[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)
    table = _read(block, at, order, big, depth=0)
    if _length(table) > len(block):
        raise ValueError("values lie upon each other")
    return table


def _read(block: bytes, at: int, order: str, big: bool, depth: int) -> Table:
    table, view = Table(), memoryview(block)
    for tag, kind, count, where, size in _entries(block, at, order, big):
        if tag not in POINTERS:
            table.entries[tag] = (kind, count, view[where : where + size])
        elif depth < 2 and tag not in table.tables:
            table.tables[tag] = _read(block, _number(block, order, kind, where), order, big, depth + 1)
    return table


def _length(table: Table) -> int:
    own = sum(len(value) for _, _, value in table.entries.values())
    return own + sum(_length(below) for below in table.tables.values())


def laid(table: Table, order: str, at: int) -> bytes:
    """The table's bytes as they stand at offset `at` of a file: entries in order, their values, then its tables."""
    tags = sorted({*table.entries, *table.tables})
    start = at + 2 + 12 * len(tags) + 4
    rows, values = struct.pack(order + "H", len(tags)), b""
    for tag in tags:
        here = start + len(values)
        if tag in table.tables:
            kind, count, value = 4, 1, struct.pack(order + "I", here)
            values += laid(table.tables[tag], order, here)
        else:
            kind, count, value = table.entries[tag]
            value = bytes(value)
            if len(value) > 4:
                values += value + b"\0" * (len(value) % 2)
                value = struct.pack(order + "I", here)
        rows += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return rows + b"\0" * 4 + values


def of_tiff(data: bytes) -> bytes:
    """A block of what a TIFF file says that is not about its own structure; empty where that is nothing.

    Raises one of UNREADABLE.
    """
    table = read(data)
    table.entries = {
        tag: entry for tag, entry in table.entries.items() if tag not in STRUCTURE and entry[0] not in (16, 17, 18)
    }
    if not table.entries and not table.tables:
        return b""
    order = byte_order(data)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + laid(table, order, 8)
