"""The XMP packet (ISO 16684-1) that says what such a picture is: made in part by a trained model.

IPTC's `DigitalSourceType` (IPTC Photo Metadata Standard 2023.1) has the term for it. Whatever else a packet holds stays
as it is, but for an orientation, which has been applied to the pixels.
"""

from __future__ import annotations

from xml.dom import Node, minidom
from xml.parsers.expat import ExpatError

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'

UNREADABLE = (ExpatError, ValueError, LookupError, RecursionError, AttributeError)
"""What comes of a packet that is none."""


def labelled(packet: bytes) -> bytes:
    """The packet (or, where it is empty, a new one) with the source type, in UTF-8. Raises one of UNREADABLE."""
    packet = packet.strip(b"\0 \t\r\n")
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise ValueError("no packet has a document type")
    document = minidom.parseString(packet or _EMPTY)
    (rdf, *_) = document.getElementsByTagNameNS(_RDF, "RDF")
    about = ""
    for element in list(rdf.getElementsByTagName("*")):
        if (element.namespaceURI, element.localName) == (_RDF, "Description") and element.parentNode is rdf:
            about = about or element.getAttributeNS(_RDF, "about")
        if element.hasAttributeNS(_IPTC, "DigitalSourceType"):
            element.removeAttributeNS(_IPTC, "DigitalSourceType")
        if element.hasAttributeNS(_TIFF, "Orientation"):
            element.getAttributeNodeNS(_TIFF, "Orientation").value = "1"
        name = (element.namespaceURI, element.localName)
        if name == (_IPTC, "DigitalSourceType"):
            element.parentNode.removeChild(element)
        elif name == (_TIFF, "Orientation"):
            while element.firstChild:
                element.removeChild(element.firstChild)
            element.appendChild(document.createTextNode("1"))
    rdf.appendChild(_description(document, about))
    parts = [node.toxml() for node in document.childNodes]
    if document.firstChild.nodeType != Node.PROCESSING_INSTRUCTION_NODE:
        parts = [_BEGIN, *parts, '<?xpacket end="w"?>']
    return "".join(parts).encode()


def _description(document: minidom.Document, about: str) -> minidom.Element:
    """A description of the same resource as the others, with prefixes of its own, as the packet may have any."""
    description = document.createElementNS(_RDF, "rdf:Description")
    description.setAttribute("xmlns:rdf", _RDF)
    description.setAttribute("xmlns:Iptc4xmpExt", _IPTC)
    description.setAttribute("rdf:about", about)
    kind = document.createElementNS(_IPTC, "Iptc4xmpExt:DigitalSourceType")
    kind.appendChild(document.createTextNode(SOURCE_TYPE))
    description.appendChild(kind)
    return description
