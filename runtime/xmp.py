"""XMP packets: the mark that says a picture was made by AI, and a place for our record where a file has no other.

IPTC Photo Metadata Standard, DigitalSourceType: https://iptc.org/standards/photo-metadata/; XMP: ISO 16684-1.
"""

from __future__ import annotations

from html import escape  # xml.sax.saxutils would load an HTTP client, and that TLS
from typing import NamedTuple
from xml.etree import ElementTree as ET

MAX_PACKET = 1 << 20
"""Bytes of a packet that is read."""
AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
AI_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

_SPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "diffusette": "urn:diffusette:1.0/",
}
_NO_XML = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})
"""Characters that XML 1.0 has not, though JSON has, in JSON's escapes."""


class Properties(NamedTuple):
    """What a packet says; None where it is silent."""

    source_type: str | None = None
    tool: str | None = None
    record: str | None = None
    """Our record, in JSON."""


def compose(properties: Properties) -> str:
    """An XMP packet with what is not None."""
    attributes = [f"xmlns:{prefix}={_quoted(space)}" for prefix, space in _SPACES.items() if prefix not in {"x", "rdf"}]
    if properties.source_type is not None:
        attributes.append(f"Iptc4xmpExt:DigitalSourceType={_quoted(properties.source_type)}")
    if properties.tool is not None:
        attributes.append(f"xmp:CreatorTool={_quoted(properties.tool)}")
    text = "" if properties.record is None else escape(properties.record.translate(_NO_XML), quote=False)
    record = text and f"<diffusette:record>{text}</diffusette:record>"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f"<x:xmpmeta xmlns:x={_quoted(_SPACES['x'])}><rdf:RDF xmlns:rdf={_quoted(_SPACES['rdf'])}>"
        f'<rdf:Description rdf:about="" {" ".join(attributes)}>{record}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _quoted(value: str) -> str:
    """`value` as an attribute's value, quotes included."""
    return f'"{escape(value)}"'


def parse(packet: bytes) -> Properties:
    """What `packet` says, however an editor has written it; silence where it is no XMP."""
    if len(packet) > MAX_PACKET:
        return Properties()
    try:
        text = packet.decode().strip("\ufeff\0 \r\n\t")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # no XMP has a document type; without one, no entity can grow
            return Properties()
        root = ET.fromstring(text)  # noqa: S314  # what makes it unsafe was refused just above
    except (ET.ParseError, UnicodeDecodeError, ValueError):
        return Properties()
    return Properties(
        _find(root, "Iptc4xmpExt", "DigitalSourceType"), _find(root, "xmp", "CreatorTool"), _find(root, "diffusette", "record")
    )


def _find(root: ET.Element, prefix: str, name: str) -> str | None:
    """A property, as an attribute or as an element."""
    wanted = f"{{{_SPACES[prefix]}}}{name}"
    for element in root.iter():
        if wanted in element.attrib:
            return element.attrib[wanted]
        if element.tag == wanted:
            return element.text or element.attrib.get(f"{{{_SPACES['rdf']}}}resource")
    return None
