"""The two tags of EXIF that matter here, read with care and written without a library: Orientation and UserComment.

EXIF is a TIFF file without pixels: a byte order, then tables of 12-byte entries (EXIF 2.32, section 4.6). Pillow's reader
warns on damaged data; here what cannot be read is not there.
"""

from __future__ import annotations

import struct

_HEAD = b"Exif\0\0"
_ORIENTATION, _EXIF_TABLE, _USER_COMMENT = 0x0112, 0x8769, 0x9286
_UNDEFINED, _LONG = 7, 4


def orientation(exif: bytes) -> int:
    """How the picture lies, 1 (upright) to 8; 1 where nothing is said."""
    order, body = _open(exif)
    try:
        entry = _entry(order, body, struct.unpack_from(f"{order}I", body, 4)[0], _ORIENTATION)
        value = 1 if entry is None else struct.unpack_from(f"{order}H", body, entry + 8)[0]
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def read_comment(exif: bytes) -> str | None:
    """UserComment, which names its own encoding; None where there is none."""
    order, body = _open(exif)
    try:
        table = _entry(order, body, struct.unpack_from(f"{order}I", body, 4)[0], _EXIF_TABLE)
        entry = None if table is None else _entry(order, body, struct.unpack_from(f"{order}I", body, table + 8)[0], _USER_COMMENT)
        if entry is None:
            return None
        count, place = struct.unpack_from(f"{order}II", body, entry + 4)
    except struct.error:
        return None
    code, text = body[place : place + 8], body[place + 8 : place + count]
    if code == b"UNICODE\0":
        return text.decode("utf-16-be", "replace")
    return text.decode("utf-8", "replace").strip("\0") or None


def comment(text: str) -> bytes:
    """EXIF that holds `text` as UserComment in UTF-16, as the web UI writes it, and nothing else."""
    body = b"UNICODE\0" + text.encode("utf-16-be")
    tables = struct.pack(
        ">2sHI HHHIII HHHIII", b"MM", 42, 8, 1, _EXIF_TABLE, _LONG, 1, 26, 0, 1, _USER_COMMENT, _UNDEFINED, len(body), 44, 0
    )
    return _HEAD + tables + body


def _open(exif: bytes) -> tuple[str, bytes]:
    body = exif.removeprefix(_HEAD)
    return "<" if body.startswith(b"II") else ">", body


def _entry(order: str, body: bytes, table: int, wanted: int) -> int | None:
    """Where in `body` the table's entry for the tag `wanted` begins."""
    (count,) = struct.unpack_from(f"{order}H", body, table)
    starts = range(table + 2, table + 2 + 12 * count, 12)
    return next((start for start in starts if struct.unpack_from(f"{order}H", body, start)[0] == wanted), None)
