"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import secrets
from pathlib import Path

from ..models.errors import RequestError, ResourceError


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` by way of a temporary file in the same folder, so that no half file ever has that name.

    Raises:
        RequestError: the folder is missing, or nothing may be written there.
        ResourceError: the disk is full; nothing is left behind.
    """
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{path}: not a file: expected the name of a file to write")
        _replace(path.resolve(), data)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: links in a circle
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or error
        if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise ResourceError(f"{path}: {reason}: {len(data):,} bytes are needed; free some space or write elsewhere") from error
        if number == errno.ENOENT:
            raise RequestError(f"{path}: there is no folder {path.parent}: make it, or write elsewhere") from error
        raise RequestError(f"{path}: cannot be written ({reason}): write elsewhere") from error


def _replace(place: Path, data: bytes) -> None:
    temporary = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
