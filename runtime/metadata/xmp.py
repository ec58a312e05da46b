"""XMP packets: the mark that AI made an image, what system made it, and the record in formats without text chunks.

IPTC Photo Metadata Standard 2025.1, DigitalSourceType and the AI properties: https://iptc.org/standards/photo-metadata/; XMP: ISO 16684-1.
"""

from __future__ import annotations

import re
from html import escape  # xml.sax.saxutils would load an HTTP client, and that TLS
from typing import NamedTuple
from xml.etree import ElementTree as ET

MAX_PACKET = 1 << 20
"""Longer packets, in bytes, are ignored."""
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
"""Characters that JSON allows and XML 1.0 does not → their JSON escapes."""


_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
"""Characters that XML cannot hold; JSON has none of them, a prompt may."""


class Properties(NamedTuple):
    """The properties of a packet; None if a property is missing."""

    source_type: str | None = None
    tool: str | None = None
    record: str | None = None
    """The record of diffusette, in JSON."""
    system: str | None = None
    system_version: str | None = None
    provider: str | None = None
    """Who offers the system. The standards have no property for it, so it is one of ours."""
    identifier: str | None = None
    """Unique for each image."""
    time: str | None = None
    """ISO 8601."""
    prompt: str | None = None
    prompt_writer: str | None = None


_NAMES = {
    "source_type": ("Iptc4xmpExt", "DigitalSourceType"),
    "tool": ("xmp", "CreatorTool"),
    "system": ("Iptc4xmpExt", "AISystemUsed"),
    "system_version": ("Iptc4xmpExt", "AISystemVersionUsed"),
    "provider": ("diffusette", "provider"),
    "identifier": ("Iptc4xmpExt", "DigImageGUID"),
    "time": ("xmp", "CreateDate"),
    "prompt_writer": ("Iptc4xmpExt", "AIPromptWriterName"),
    "prompt": ("Iptc4xmpExt", "AIPromptInformation"),
    "record": ("diffusette", "record"),
}
"""Field → prefix and name of its property. The last two hold any text, so they are elements; the others are attributes."""
_ELEMENTS = ("prompt", "record")


def compose(properties: Properties) -> str:
    """Return an XMP packet with the properties that are not None."""
    attributes = [f"xmlns:{prefix}={_quoted(space)}" for prefix, space in _SPACES.items() if prefix not in {"x", "rdf"}]
    elements: list[str] = []
    for field, (prefix, name) in _NAMES.items():
        value: str | None = getattr(properties, field)
        if value and field in _ELEMENTS:
            text = escape(_CONTROLS.sub("\ufffd", value.translate(_NO_XML)), quote=False)
            elements.append(f"<{prefix}:{name}>{text}</{prefix}:{name}>")
        elif value is not None and field not in _ELEMENTS:
            attributes.append(f"{prefix}:{name}={_quoted(value)}")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f"<x:xmpmeta xmlns:x={_quoted(_SPACES['x'])}><rdf:RDF xmlns:rdf={_quoted(_SPACES['rdf'])}>"
        f'<rdf:Description rdf:about="" {" ".join(attributes)}>{"".join(elements)}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _quoted(value: str) -> str:
    """Return `value` as an XML attribute value, with quotes."""
    return f'"{escape(value)}"'


def parse(packet: bytes) -> Properties:
    """Parse `packet` as written by any editor; return empty properties if it is not XMP."""
    if len(packet) > MAX_PACKET:
        return Properties()
    try:
        text = packet.decode().strip("\ufeff\0 \r\n\t")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # XMP never has a document type; without one, entities cannot expand
            return Properties()
        root = ET.fromstring(text)  # noqa: S314  # document types and entities are refused above
    except (ET.ParseError, UnicodeDecodeError, ValueError):
        return Properties()
    return Properties(**{field: _find(root, *place) for field, place in _NAMES.items()})


def _find(root: ET.Element, prefix: str, name: str) -> str | None:
    """Return a property that is an attribute or an element."""
    wanted = f"{{{_SPACES[prefix]}}}{name}"
    for element in root.iter():
        if wanted in element.attrib:
            return element.attrib[wanted]
        if element.tag == wanted:
            inner = next((child.text for child in element.iter() if child is not element and child.text and child.text.strip()), None)
            return inner or element.text or element.attrib.get(f"{{{_SPACES['rdf']}}}resource")
    return None
