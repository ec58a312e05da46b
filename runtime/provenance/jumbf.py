"""Find the C2PA manifest store in an image file without the C2PA library: whether there is one, its size, and whether its boxes are sound.

C2PA 2.2, annex A: a chunk `caBX` in PNG, a chunk `C2PA` in WebP's RIFF, segments APP11 with JUMBF in JPEG.
"""

from __future__ import annotations

from ..images import png
from . import cbor

MAX_STORE = 16 << 20
"""Bytes; larger stores are not read, and not taken over from inputs. Ours have 3 KB."""
_APP11, _SCAN = 0xEB, 0xDA
_MAX_DEPTH = 32
"""Of boxes within boxes."""


def size_of(data: bytes) -> int:
    """Return the bytes of the manifest store in an image file, 0 if there is none."""
    return sum(map(len, _stores(data)))


def is_sound(data: bytes) -> bool:
    """Whether the boxes of every manifest store in an image file end where they say, and their CBOR too."""
    return all(_is_sound(store, 0, len(store), 0) for store in _stores(data))


def _is_sound(store: bytes, at: int, end: int, depth: int) -> bool:
    """Check the boxes (ISO 19566-5: length, type, content) in `store[at:end]`. Compressed ones are refused: nothing is known of them."""
    while at < end:
        length, kind = int.from_bytes(store[at : at + 4], "big"), store[at + 4 : at + 8]
        if not 8 <= length <= end - at or kind == b"brob" or depth > _MAX_DEPTH:
            return False
        if kind == b"jumb" and not _is_sound(store, at + 8, at + length, depth + 1):
            return False
        if kind == b"cbor" and not cbor.is_well_formed(store[at + 8 : at + length]):
            return False
        at += length
    return True


def _stores(data: bytes) -> list[bytes]:
    if data.startswith(png.SIGNATURE):
        return [chunk[8:-4] for kind, chunk in png.chunks(data) if kind == b"caBX"]
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _of_webp(data)
    return []


def _of_webp(data: bytes) -> list[bytes]:
    at, found = 12, list[bytes]()
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"C2PA":
            found.append(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return found


def _of_jpeg(data: bytes) -> list[bytes]:
    """The APP11 segments before the first scan: marker, length, "JP", instance, sequence number, then a part of a box of JUMBF. Each
    part after the first repeats the head of the box.
    """
    at, found = 2, dict[bytes, list[bytes]]()
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == _APP11 and body[:2] == b"JP":
            parts = found.setdefault(body[2:4], [])
            parts.append(body[16:] if parts else body[8:])
        at += 2 + max(length, 2)
    return [b"".join(parts) for parts in found.values() if b"c2pa" in parts[0][:64]]
