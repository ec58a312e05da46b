"""Write and read the metadata of image files: the settings of an image, and the mark that AI made it.

A file contains three entries: `parameters`, the text that AUTOMATIC1111's web UI writes and other tools read; XMP with IPTC's
DigitalSourceType, which marks the image as made by AI; and diffusette's own record in JSON, which preserves every prompt exactly.

| file | parameters | XMP | record |
|---|---|---|---|
| PNG | text chunk `parameters` | text chunk `XML:com.adobe.xmp` | text chunk `diffusette` |
| JPEG, WebP | EXIF UserComment | XMP segment or chunk | property `diffusette:record` of the XMP |

`encode` returns bytes and `atomic_file.replace_file` writes them; `runtime/saving.py` adds watermark and signature.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from PIL import Image, PngImagePlugin

from ...models.errors import RequestError
from ...models.formats.atomic_file import replace_file
from ..images import exif, image_io
from . import infotext, other_tools, xmp
from .other_tools import Foreign
from .record import Record, from_json, to_json
from .record import tool as this_tool

Format = Literal["PNG", "JPEG", "WEBP"]

FORMATS: dict[str, Format] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File formats by file extension."""

_XMP_KEY, _RECORD_KEY, _TEXT_KEY = "XML:com.adobe.xmp", "diffusette", "parameters"
_JPEG_SEGMENT = 65_000
"""The most bytes of EXIF or XMP in a JPEG segment, with some room for its header."""


class Disclosure(NamedTuple):
    """What a file says about the system that made the image, beside its settings. Empty fields are left out.

    The first four and the identifier are what California's SB 942 asks for.
    """

    provider: str = ""
    """Who offers the system to its users."""
    system: str = ""
    version: str = ""
    time: str = ""
    """UTC, ISO 8601."""
    identifier: str = ""
    """Unique for each image."""
    prompt: str = ""
    """For AIPromptInformation; the record holds the prompt anyway."""
    prompt_writer: str = ""


@dataclass(frozen=True)
class Found:
    """The metadata in a file."""

    record: Record | None
    """The record, if the image was made by diffusette and nobody removed or damaged it."""
    text: str | None
    """The web UI's text, or another tool's in its place."""
    ai: bool
    """Whether the file marks the image as made or edited by AI."""
    tool: str | None
    """The program that the file names as its creator."""
    other: Foreign | None = None
    """The settings of another tool."""
    source_type: str | None = None
    """IPTC's DigitalSourceType."""
    disclosure: Disclosure = field(default_factory=Disclosure)
    """What the file says about the system that made the image."""

    def settings(self) -> dict[str, Any]:
        """Return the settings in the file, under the names of `Record`'s fields; empty if the file has none."""
        if self.record is not None:
            return msgspec.to_builtins(self.record)
        if self.other is not None:
            return dict(self.other.settings)
        return infotext.parse(self.text) if self.text else {}

    def facts(self) -> dict[str, Any]:
        """Return all metadata, for `--json`."""
        source = "record" if self.record else self.other.tool if self.other else "parameters" if self.text else None
        return {"ai": self.ai, "tool": self.tool or (self.other.tool if self.other else None), "source": source, **self.settings()}


def encode(
    image: Image.Image,
    kind: Format,
    record: Record | None,
    *,
    ai: bool = True,
    quality: int = 95,
    edited: bool | None = None,
    disclosure: Disclosure | None = None,
) -> bytes:
    """Encode `image` in that format with its metadata. Equal arguments give equal bytes.

    Args:
        image: RGB.
        kind: PNG is lossless; `quality` applies to the others.
        record: None omits prompt and settings.
        ai: whether to mark the image as made by AI, with or without a `record`.
        quality: 1 to 100, for JPEG and WebP.
        edited: whether the image started from another one, which the mark says too; None asks the `record`.
        disclosure: what the mark says about the system; None names this program.

    Raises:
        RequestError: the record is too long for JPEG, or cannot be stored.
    """
    text = None if record is None else infotext.compose(record)
    stored = None if record is None else to_json(record)
    record_has_chunk = kind == "PNG"
    edited = edited if edited is not None else record is not None and "init" in record.extra
    properties = _properties(disclosure, edited=edited) if ai else xmp.Properties()
    properties = properties._replace(tool=this_tool() if ai or record else None, record=None if record_has_chunk else stored)
    packet = xmp.compose(properties) if any(properties) else None
    buffer = io.BytesIO()
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text is not None and stored is not None:
            chunks.add_text(_TEXT_KEY, text)
            chunks.add_itxt(_RECORD_KEY, stored)
        if packet is not None:
            chunks.add_itxt(_XMP_KEY, packet)
        # Run-length encoding compresses photographs as well as level 6, in two fifths of the time.
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=1, compress_type=zlib.Z_RLE)
        return buffer.getvalue()
    extra: dict[str, Any] = {"quality": quality}
    if text is not None:
        extra["exif"] = exif.comment(text)
    if packet is not None:
        extra["xmp"] = packet.encode()
    if kind == "JPEG" and max(len(extra.get("exif", b"")), len(extra.get("xmp", b""))) > _JPEG_SEGMENT:
        raise RequestError(f"metadata: the prompt is too long for JPEG, which holds {_JPEG_SEGMENT:,} bytes; write PNG or WebP")
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


def _properties(disclosure: Disclosure | None, *, edited: bool) -> xmp.Properties:
    """The mark that AI made or edited the image."""
    name, _, version = this_tool().partition(" ")
    said = Disclosure(system=name, version=version) if disclosure is None else disclosure
    return xmp.Properties(
        source_type=xmp.AI_EDITED if edited else xmp.AI_MADE,
        system=said.system or None,
        system_version=said.version or None,
        provider=said.provider or None,
        identifier=said.identifier or None,
        time=said.time or None,
        prompt=said.prompt or None,
        prompt_writer=said.prompt_writer or None,
    )


def write(image: Image.Image, path: Path, record: Record | None, *, ai: bool = True, quality: int = 95) -> None:
    """Write `image` to `path` in the format of its extension. The file is replaced atomically.

    Raises:
        RequestError: unknown extension, or the file cannot be written; or as in `encode`.
        ResourceError: the disk is full.
    """
    replace_file(path, encode(image, format_of(path), record, ai=ai, quality=quality))


def format_of(path: Path) -> Format:
    """Return the format for the extension of `path`.

    Raises:
        RequestError: unknown extension; the message lists the known ones.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path}: unknown format; expected a name that ends in {', '.join(FORMATS)}")
    return kind


def read(source: Path | bytes) -> Found:
    """Read the metadata of an image file, or of its bytes.

    Raises:
        RequestError: not a readable PNG, JPEG or WebP image.
    """
    info = image_io.read_info(source)
    text = info.texts.get(_TEXT_KEY) or exif.read_comment(info.exif)
    properties = xmp.parse(info.xmp)
    record = from_json(info.texts.get(_RECORD_KEY) or properties.record or "")
    other = None if record else other_tools.read(info.texts, text)
    names = ("provider", "system", "system_version", "time", "identifier", "prompt", "prompt_writer")
    disclosure = Disclosure(*(getattr(properties, name) or "" for name in names))
    ai = properties.source_type in {xmp.AI_MADE, xmp.AI_EDITED}
    return Found(record, text, ai, properties.tool, other, properties.source_type, disclosure)
