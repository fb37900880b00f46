"""What files say about their pictures: merged, kept, corrected, and never believed more than is safe."""

from __future__ import annotations

import struct

import pytest

from tests.unit import icc_files
from tests.unit.image_kinds import exif as exif_block
from tests.unit.picture_files import chunk, drawn, png, saved
from worker import decoder
from worker.decoder import exif, profiles, xmp
from worker.images import avif

# XMP

PACKET = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<r:Description r:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 tiff:Orientation="6" xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 i:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture">
<dc:creator><r:Seq><r:li>J\xc3\xb6rg &amp; Co</r:li></r:Seq></dc:creator></r:Description></r:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def test_a_packet_of_our_own_says_what_the_picture_is():
    packet = xmp.labelled(b"")
    assert packet.count(xmp.SOURCE_TYPE.encode()) == 1
    assert packet.startswith('<?xpacket begin="\ufeff"'.encode()) and packet.endswith(b'<?xpacket end="w"?>')
    assert xmp.SOURCE_TYPE.endswith("compositeWithTrainedAlgorithmicMedia")


def test_a_packet_is_kept_and_the_source_type_replaced():
    packet = xmp.labelled(PACKET)
    assert "Jörg &amp; Co".encode() in packet and b"dc:creator" in packet and b'r:about="uuid:1"' in packet
    assert b"digitalCapture" not in packet and packet.count(xmp.SOURCE_TYPE.encode()) == 1
    assert b'tiff:Orientation="1"' in packet and b'rdf:about="uuid:1"' in packet
    assert xmp.labelled(packet).count(xmp.SOURCE_TYPE.encode()) == 1


def test_elements_are_found_like_attributes():
    elements = PACKET.replace(b' tiff:Orientation="6"', b"").replace(
        b"<dc:creator>",
        b"<tiff:Orientation>8</tiff:Orientation><i:DigitalSourceType>old</i:DigitalSourceType><dc:creator>",
    )
    packet = xmp.labelled(elements)
    assert b"<tiff:Orientation>1</tiff:Orientation>" in packet and b">old<" not in packet


@pytest.mark.parametrize(
    "packet",
    [
        b"rubbish",
        b"<a/>",
        PACKET[:300],
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + PACKET,
        b"<x>" * 5000 + b"</x>" * 5000,
        PACKET.replace(b"J\xc3\xb6rg", b"\xff\xfe"),
    ],
)
def test_what_is_no_packet_is_told(packet):
    with pytest.raises(xmp.UNREADABLE):
        xmp.labelled(packet)


def test_a_picture_with_a_broken_packet_is_read_and_labelled():
    header = decoder.shared.decode(saved(drawn(), "WEBP", xmp=b"rubbish"), max_pixels=10**6).header
    assert xmp.SOURCE_TYPE.encode() in header.xmp
    assert "XMP" in header.warnings[0]


def test_an_orientation_in_the_packet_turns_the_picture_once():
    header = decoder.shared.decode(saved(drawn(), "WEBP", xmp=PACKET), max_pixels=10**6).header
    assert (header.width, header.height) == (43, 61)
    assert b'tiff:Orientation="1"' in header.xmp


# EXIF


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_block_is_changed_in_its_place_only(order):
    entries = {0x0112: (3, 1, struct.pack(order + "H", 6)), 0x927C: (7, 9, b"its notes")}
    table = exif.Table(entries, {0x8769: exif.Table({
        0xA002: (4, 1, struct.pack(order + "I", 400)), 0xA003: (4, 1, struct.pack(order + "I", 300)),
    })})  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = head + exif.laid(table, order, 8)
    changed = exif.upright(b"Exif\0\0" + block, True)
    assert len(changed) == len(block)
    assert sum(a != b for a, b in zip(block, changed, strict=True)) <= 1 + 4 + 4
    read = exif.read(changed)
    assert bytes(read.entries[0x0112][2]) == struct.pack(order + "H", 1)
    assert bytes(read.tables[0x8769].entries[0xA002][2]) == struct.pack(order + "I", 300)
    assert exif.upright(block, False)[-8:] == block[-8:]


def test_the_thumbnail_of_how_it_was_is_wiped():
    thumbnail = saved(drawn(), "JPEG")
    first = exif.laid(exif.Table({0x0112: (3, 1, struct.pack("<H", 1))}), "<", 8)
    at = 8 + len(first)
    second = exif.laid(exif.Table({
        0x0201: (4, 1, struct.pack("<I", at + 30)), 0x0202: (4, 1, struct.pack("<I", len(thumbnail))),
    }), "<", at)  # fmt: skip
    assert len(second) == 30
    block = b"II*\0\x08\0\0\0" + first[:-4] + struct.pack("<I", at) + second + thumbnail
    changed = exif.upright(block, False)
    assert thumbnail[:50] not in changed and len(changed) == len(block)
    assert exif.read(changed).entries


def nested() -> bytes:
    """A table that points at itself."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + b"\0" * 4


@pytest.mark.parametrize(
    "block",
    [
        b"rubbish",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 40,
        b"MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 0x8769, 9, 1, 8) + b"\0" * 4,
    ],
)
def test_what_is_no_block_is_told(block):
    with pytest.raises(exif.UNREADABLE):
        exif.upright(block, True)


def test_a_table_that_points_at_itself_ends():
    assert exif.read(nested()).tables


def test_values_that_lie_upon_each_other_are_refused():
    count = 100
    rows = b"".join(struct.pack("<HHII", 0x9000 + n, 7, 1000, 8) for n in range(count))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + rows + b"\0" * 4
    assert len(block) < 2000
    with pytest.raises(ValueError, match="upon each other"):
        exif.upright(block, False)


def test_a_tiff_tells_only_what_is_not_about_its_pixels():
    block = exif.of_tiff(saved(drawn(), "TIFF", exif=exif_block()))
    table = exif.read(block)
    assert {0x010F, 0x8298} <= set(table.entries) and not set(table.entries) & exif.STRUCTURE
    assert set(table.tables) == {0x8769, 0x8825}
    assert exif.of_tiff(saved(drawn(), "TIFF")) == b""


# Profiles


def test_a_profile_fits_its_own_kind_of_picture_only():
    spaces = {"grey": icc_files.GREY, "rgb": icc_files.WIDE, "cmyk": icc_files.CMYK}
    for space, icc in spaces.items():
        assert [profiles.usable(icc, other) for other in spaces] == [other == space for other in spaces]
    assert not profiles.usable(b"rubbish", "rgb")
    assert not profiles.usable(icc_files.WIDE[:200], "rgb")


@pytest.mark.parametrize("icc", [b"rubbish", icc_files.GREY, icc_files.WIDE[:200]])
def test_a_profile_that_cannot_be_used_is_left_out_and_said(icc):
    header = decoder.shared.decode(saved(drawn(), "PNG", icc_profile=icc), max_pixels=10**6).header
    assert header.icc == b"" and "profile" in header.warnings[0]


def test_a_gamma_that_is_left_out_is_said():
    header = decoder.shared.decode(png(before=chunk(b"gAMA", struct.pack(">I", 100_000))), max_pixels=10**6).header
    assert "gamma" in header.warnings[0]
    plain = decoder.shared.decode(png(before=chunk(b"gAMA", struct.pack(">I", 45_455))), max_pixels=10**6).header
    assert plain.warnings == ()


# AVIF's boxes


def test_an_avif_of_another_layout_is_not_written_to():
    with pytest.raises((ValueError, KeyError)):
        avif.with_blocks(b"\0\0\0\x08ftyp\0\0\0\x09meta\0", icc=b"", exif=b"", xmp=b"<x/>")
    with pytest.raises(ValueError, match="libavif"):
        avif.with_blocks(b"\0\0\0\x02ftyp", icc=b"", exif=b"", xmp=b"")
