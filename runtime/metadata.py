"""Marks in picture files: how a picture was made, and that a machine made it.

A file carries three things. `parameters`, the text that AUTOMATIC1111's web UI writes and other tools read. XMP with
IPTC's DigitalSourceType, which says that AI made the picture. And our own record in JSON, the truth: it gives every
prompt back unchanged, whatever stands in it.

| file | parameters | XMP | record |
|---|---|---|---|
| PNG | text chunk `parameters` | text chunk `XML:com.adobe.xmp` | text chunk `diffusette` |
| JPEG, WebP | EXIF UserComment | its own segment or chunk | property `diffusette:record` of the XMP |

`encode` gives bytes and `whole_file.replace_file` writes them: what signs or marks a picture goes between the two.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from PIL import Image, PngImagePlugin

from ..models.errors import RequestError
from . import exif, parameters, pictures, xmp
from .parameters import Record
from .whole_file import replace_file

Format = Literal["PNG", "JPEG", "WEBP"]

FORMATS: dict[str, Format] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By the ending of the file's name."""

_XMP_KEY, _RECORD_KEY, _TEXT_KEY = "XML:com.adobe.xmp", "diffusette", "parameters"
_JPEG_SEGMENT = 65_000
"""Bytes of EXIF or XMP that a JPEG segment holds, with a little room for its head."""


@dataclass(frozen=True)
class Found:
    """The marks in a file."""

    record: Record | None
    """Ours, if we drew it and nobody cut it out or damaged it."""
    text: str | None
    """The web UI's."""
    ai: bool
    """Whether the file says that AI made or edited the picture."""
    tool: str | None
    """The program that the file names as its maker."""

    def settings(self) -> dict[str, Any]:
        """How the picture was drawn, by the names of `Record`'s fields; as far as another tool's text says. Empty if nothing does."""
        if self.record is not None:
            return msgspec.to_builtins(self.record)
        return parameters.parse(self.text) if self.text else {}

    def facts(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        source = "record" if self.record else "parameters" if self.text else None
        return {"ai": self.ai, "tool": self.tool, "source": source, **self.settings()}


def encode(image: Image.Image, kind: Format, record: Record | None, *, ai: bool = True, quality: int = 95) -> bytes:
    """`image` as a file of that kind, with its marks; the same arguments give the same bytes.

    Args:
        image: RGB.
        kind: PNG is without loss; `quality` (1 to 100) is for the others.
        record: None leaves prompt and settings out.
        ai: whether the file says that AI made it; that does not depend on `record`.
        quality: of JPEG and WebP.

    Raises:
        RequestError: the record is too long for a JPEG, or cannot be stored.
    """
    text = None if record is None else parameters.compose(record)
    stored = None if record is None else parameters.to_json(record)
    apart = kind == "PNG"
    properties = xmp.Properties(
        source_type=xmp.AI_MADE if ai else None,
        tool=parameters.tool() if ai or record else None,
        record=None if apart else stored,
    )
    packet = xmp.compose(properties) if any(properties) else None
    buffer = io.BytesIO()
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text is not None and stored is not None:
            chunks.add_text(_TEXT_KEY, text)
            chunks.add_itxt(_RECORD_KEY, stored)
        if packet is not None:
            chunks.add_itxt(_XMP_KEY, packet)
        # Run lengths alone compress photographs as well as level 6 does, in two fifths of the time.
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=1, compress_type=zlib.Z_RLE)
        return buffer.getvalue()
    extra: dict[str, Any] = {"quality": quality}
    if text is not None:
        extra["exif"] = exif.comment(text)
    if packet is not None:
        extra["xmp"] = packet.encode()
    if kind == "JPEG" and max(len(extra.get("exif", b"")), len(extra.get("xmp", b""))) > _JPEG_SEGMENT:
        raise RequestError(f"metadata: the prompt is too long for a JPEG, which holds {_JPEG_SEGMENT:,} bytes of it: write PNG or WebP")
    image.save(buffer, kind, **extra)
    return buffer.getvalue()


def write(image: Image.Image, path: Path, record: Record | None, *, ai: bool = True, quality: int = 95) -> None:
    """`encode` into the file `path`, whose ending says the format. Either the whole file is there afterwards, or nothing new.

    Raises:
        RequestError: the ending is unknown, or the file cannot be written there; or as `encode`.
        ResourceError: the disk is full.
    """
    replace_file(path, encode(image, format_of(path), record, ai=ai, quality=quality))


def format_of(path: Path) -> Format:
    """The format that the ending of `path` names.

    Raises:
        RequestError: it names none.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path}: cannot tell the format: expected a name that ends in {', '.join(FORMATS)}")
    return kind


def read(path: Path) -> Found:
    """The marks in the picture `path`.

    Raises:
        RequestError: not a PNG, JPEG or WebP picture that can be read.
    """
    info = pictures.read_info(path)
    text = info.get(_TEXT_KEY)
    if not isinstance(text, str):
        text = exif.read_comment(info.get("exif") or b"")
    packet = info.get("xmp")
    said = xmp.parse(packet if isinstance(packet, bytes) else str(packet or "").encode(errors="replace"))
    stored = info.get(_RECORD_KEY)
    record = parameters.from_json(str(stored) if stored else said.record or "")
    return Found(record, text, said.source_type in {xmp.AI_MADE, xmp.AI_EDITED}, said.tool)
