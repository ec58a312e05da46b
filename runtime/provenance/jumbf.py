"""Find the C2PA manifest store in an image file without the C2PA library: whether there is one, and its size.

C2PA 2.2, annex A: a chunk `caBX` in PNG, a chunk `C2PA` in WebP's RIFF, segments APP11 with JUMBF in JPEG.
"""

from __future__ import annotations

from ..images import png

MAX_STORE = 16 << 20
"""Bytes; larger stores are not read, and not taken over from inputs. Ours have 3 KB."""
_APP11, _SCAN = 0xEB, 0xDA


def size_of(data: bytes) -> int:
    """Return the bytes of the manifest store in an image file, 0 if there is none."""
    if data.startswith(png.SIGNATURE):
        return sum(len(chunk) - 12 for kind, chunk in png.chunks(data) if kind == b"caBX")
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _of_webp(data)
    return 0


def _of_webp(data: bytes) -> int:
    at, found = 12, 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"C2PA":
            found += length
        at += 8 + length + length % 2
    return found


def _of_jpeg(data: bytes) -> int:
    """The APP11 segments before the first scan: marker, length, "JP", instance, sequence number, then a box of JUMBF."""
    at, found, ours = 2, 0, False
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == _APP11 and body[:2] == b"JP":
            ours = ours or b"c2pa" in body[:64]
            found += len(body)
        at += 2 + max(length, 2)
    return found if ours else 0
