"""Small files that come from outside: configs, vocabularies, lists of prompts. All of them are read here.

A file is opened without waiting and looked at before it is read, so that a pipe, a device or an endless file ends in one line.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from ..errors import BundleError
from .file_kind import looks_like

T = TypeVar("T")
MAX_CONFIG = 1 << 20
"""Bytes of a config."""
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def read_bytes(path: Path, limit: int = MAX_CONFIG, expected: str = "a config in JSON") -> bytes:
    """Return the bytes of the regular file `path`, at most `limit` of them. `expected` describes the file in messages.

    Raises:
        BundleError: missing, not a regular file, too large, or unreadable.
    """
    with open_regular(path, expected) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{path}: {size:,} bytes; expected {expected} of at most {limit:,}")
        return file.read(size)


@contextmanager
def open_regular(path: Path, expected: str) -> Generator[BinaryIO]:
    """Open the regular file `path` for reading, without waiting for one that is a pipe or a device.

    Raises:
        BundleError: missing, not a regular file, or unreadable, now or while it is open.
    """
    try:
        opened = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error, expected) from error
    with opened as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            kind = next((name for test, name in _KINDS if test(mode)), "a device")
            raise BundleError(f"{path}: {kind}; expected {expected} in a regular file")
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error, expected) from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unreadable(path: Path, error: OSError | ValueError, expected: str) -> BundleError:
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if number == errno.ENOENT:
        return BundleError(f"{path}: no such file; expected {expected}")
    if number in {errno.EISDIR, errno.EACCES} and path.is_dir():  # Windows cannot open folders
        return BundleError(f"{path}: a folder; expected {expected}")
    return BundleError(f"{path}: cannot be read ({reason}); expected {expected}")


def read_text(path: Path, limit: int, expected: str) -> str:
    """Return the UTF-8 text of the file `path`; with the line ends of Unix.

    Raises:
        BundleError: what `read_bytes` raises it for, or not UTF-8.
    """
    data = read_bytes(path, limit, expected)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 (looks like {looks_like(data)}); expected {expected}") from error


def read_json(path: Path, kind: type[T] = dict[str, Any], limit: int = MAX_CONFIG) -> T:
    """Return the JSON file `path` as a `kind` that msgspec knows, by default any object.

    Raises:
        BundleError: what `read_bytes` raises it for, or not JSON of that kind; the message has the place in the file.
    """
    data = read_bytes(path, limit)
    try:
        return _decoded(data, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        likely = looks_like(data)
        kindly = f"looks like {likely}" if likely not in {"JSON", "damaged or cut-off data"} else str(error)
        raise BundleError(f"{path}: not the JSON that was expected ({kindly}); download the model again") from error


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError:
        if b"Infinity" not in data:  # Python writes it, as in the scheduler configs of diffusers, though JSON has no such number
            raise
        return msgspec.convert(json.loads(data, parse_constant=_infinity), type=kind)


def _infinity(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not a number")
    return float(name)


def optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file `path`, or an empty one if there is no such file.

    Raises:
        BundleError: as `read_json`.
    """
    return read_json(path) if os.path.lexists(path) else {}
