"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RequestError, ResourceError


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` by way of a temporary file in the same folder, so that no half file ever has that name.

    Raises:
        RequestError: the folder is missing, or nothing may be written there.
        ResourceError: the disk is full; nothing is left behind.
    """
    with _explained(path, len(data)):
        _replace(path.resolve(), data)


def check_writable(path: Path) -> None:
    """Refuse a `path` that `replace_file` could not write, before the work is done whose result goes there.

    Raises:
        RequestError, ResourceError: as `replace_file`.
    """
    with _explained(path, 0):
        temporary = _beside(path.resolve())
        temporary.touch(exist_ok=False)
        temporary.unlink()


def create_private(path: Path, data: bytes) -> None:
    """Create `path`, for its owner alone to read; a file of that name, which another process may just have made, stays.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = _beside(path)
    try:
        with open(temporary, "xb", opener=_for_the_owner) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _name(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _name(temporary: Path, path: Path) -> None:
    """Give the file its name, unless there is one."""
    try:
        if sys.platform == "win32":
            temporary.rename(path)
        else:
            path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError as error:  # file systems without hard links
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}:
            raise
        temporary.replace(path)


@contextmanager
def _explained(path: Path, size: int) -> Generator[None]:
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{path}: not a file: expected the name of a file to write")
        yield
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: links in a circle
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or error
        if number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise ResourceError(f"{path}: {reason}: {size:,} bytes are needed; free some space or write elsewhere") from error
        if number == errno.ENOENT:
            raise RequestError(f"{path}: there is not a folder {path.parent}: make it, or write elsewhere") from error
        raise RequestError(f"{path}: cannot be written ({reason}): write elsewhere") from error


def _beside(place: Path) -> Path:
    return place.with_name(f".{secrets.token_hex(8)}.part")


def _replace(place: Path, data: bytes) -> None:
    temporary = _beside(place)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
