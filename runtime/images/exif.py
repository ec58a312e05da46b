"""Read the EXIF tags Orientation, Software and UserComment, and write UserComment.

EXIF is a TIFF file without pixels: a byte order, then tables of 12-byte entries (EXIF 2.32, section 4.6). Pillow's reader warns about
damaged data; this one treats unreadable tags as missing.
"""

from __future__ import annotations

import struct

_HEAD = b"Exif\0\0"
_ORIENTATION, _SOFTWARE, _EXIF_TABLE, _USER_COMMENT = 0x0112, 0x0131, 0x8769, 0x9286
_UNDEFINED, _LONG = 7, 4


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 (upright) to 8; 1 if it is missing."""
    order, body = _open(exif)
    try:
        entry = _entry(order, body, struct.unpack_from(f"{order}I", body, 4)[0], _ORIENTATION)
        value = 1 if entry is None else struct.unpack_from(f"{order}H", body, entry + 8)[0]
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def read_software(exif: bytes) -> str | None:
    """Return Software, the program that made the file; None if it is missing."""
    order, body = _open(exif)
    try:
        entry = _entry(order, body, struct.unpack_from(f"{order}I", body, 4)[0], _SOFTWARE)
        if entry is None:
            return None
        count, offset = struct.unpack_from(f"{order}II", body, entry + 4)
    except struct.error:
        return None
    start = entry + 8 if count <= 4 else offset
    return body[start : start + count].decode("utf-8", "replace").strip("\0 ") or None


def read_comment(exif: bytes) -> str | None:
    """Return UserComment, which names its own encoding; None if it is missing."""
    order, body = _open(exif)
    try:
        table = _entry(order, body, struct.unpack_from(f"{order}I", body, 4)[0], _EXIF_TABLE)
        entry = None if table is None else _entry(order, body, struct.unpack_from(f"{order}I", body, table + 8)[0], _USER_COMMENT)
        if entry is None:
            return None
        count, offset = struct.unpack_from(f"{order}II", body, entry + 4)
    except struct.error:
        return None
    code, text = body[offset : offset + 8], body[offset + 8 : offset + count]
    if code == b"UNICODE\0":
        return text.decode(_utf16(text), "replace").strip("\ufeff\0")
    return text.decode("utf-8", "replace").strip("\0") or None


def _utf16(text: bytes) -> str:
    """Detect the byte order of UTF-16, which EXIF does not define, from its mark or from the zero bytes of Latin letters."""
    if text[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return "utf-16"
    return "utf-16-le" if text[1::2].count(0) > text[0::2].count(0) else "utf-16-be"


def comment(text: str) -> bytes:
    """Return EXIF data with `text` as UserComment in UTF-16, as the web UI writes it, and no other tag."""
    body = b"UNICODE\0" + text.encode("utf-16-be")
    tables = struct.pack(
        ">2sHI HHHIII HHHIII", b"MM", 42, 8, 1, _EXIF_TABLE, _LONG, 1, 26, 0, 1, _USER_COMMENT, _UNDEFINED, len(body), 44, 0
    )
    return _HEAD + tables + body


def _open(exif: bytes) -> tuple[str, bytes]:
    body = exif.removeprefix(_HEAD)
    return "<" if body.startswith(b"II") else ">", body


def _entry(order: str, body: bytes, table: int, wanted: int) -> int | None:
    """Return the offset in `body` of the table's entry for the tag `wanted`."""
    (count,) = struct.unpack_from(f"{order}H", body, table)
    starts = range(table + 2, table + 2 + 12 * count, 12)
    return next((start for start in starts if struct.unpack_from(f"{order}H", body, start)[0] == wanted), None)
