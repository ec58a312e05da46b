"""Read PNG files chunk by chunk: their text, and the image without chunks that the decoder does not need.

Pillow stores text chunks and decoder settings in one dictionary (`info`), so a text chunk named `transparency` or `exif` changes the image,
and it seeks to the last frame that an animation declares. Here text is read separately, and the decoder receives only the first image.
PNG specification, third edition: https://www.w3.org/TR/png-3/.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 4 << 20
"""The most bytes of text in a file, after decompression; the rest is left out."""
_CONTENT = slice(8, -4)
"""The content within a chunk."""
_DROPPED = {b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"tIME", b"caBX"}


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, chunk) up to the first truncated one. A chunk is its length, type, content and checksum."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            return
        yield data[at + 4 : at + 8], data[at : at + 12 + length]
        at += 12 + length


def still(data: bytes) -> bytes:
    """Remove text, animation and C2PA chunks; others keep their checksums. A truncated file stays unchanged, and the decoder refuses it."""
    kept: list[bytes] = [SIGNATURE]
    ended = False
    for kind, chunk in chunks(data):
        if kind not in _DROPPED:
            kept.append(chunk)
        ended = ended or kind == b"IEND"
    return b"".join(kept) if ended else data


def texts(data: bytes) -> dict[str, str]:
    """Return the text chunks by keyword; the first one of equal keywords counts."""
    found: dict[str, str] = {}
    left = MAX_TEXT
    for kind, chunk in chunks(data):
        if kind not in {b"tEXt", b"zTXt", b"iTXt"} or left <= 0:
            continue
        key, _, rest = chunk[_CONTENT].partition(b"\0")
        text = _text(kind, rest, left)
        if text is not None:
            left -= len(text)
            found.setdefault(key[:79].decode("latin-1"), text.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace"))
    return found


def exif_of(data: bytes) -> bytes:
    """Return the content of the eXIf chunk; empty if it is missing."""
    return next((chunk[_CONTENT] for kind, chunk in chunks(data) if kind == b"eXIf"), b"")


def _text(kind: bytes, rest: bytes, limit: int) -> bytes | None:
    """Return the text of a chunk after its keyword, at most `limit` bytes; None if it is damaged."""
    if kind == b"tEXt":
        return rest[:limit]
    if kind == b"zTXt":
        return _inflated(rest[1:], limit) if rest[:1] == b"\0" else None
    compressed, method, rest = rest[:1], rest[1:2], rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, rest = rest.partition(b"\0")
    if compressed == b"\1":
        return _inflated(rest, limit) if method == b"\0" else None
    return rest[:limit]


def _inflated(data: bytes, limit: int) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error:
        return None
