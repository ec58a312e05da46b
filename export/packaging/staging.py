"""Build a bundle in a staging folder and publish it in one rename.

Work happens in a hidden sibling of the destination, `.NAME.partial`; finished stages leave a record there, so that an
interrupted export resumes. Only one export works on a destination at a time.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import RequestError, ResourceError

_KEY, _LOCK = "key.json", "lock"


@dataclass(frozen=True)
class Stage:
    """The folder where an export works."""

    folder: Path
    destination: Path

    @property
    def bundle(self) -> Path:
        """Published at the end."""
        return self.folder / "bundle"

    @property
    def work(self) -> Path:
        """Deleted at the end."""
        return self.folder / "work"

    def recall(self, name: str) -> Any:
        """The record of the finished stage `name`, or None."""
        try:
            return json.loads((self.folder / f"{name}.done").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def remember(self, name: str, record: Any) -> None:
        """Marks the stage `name` as finished; `record` (JSON) is what later stages need of it."""
        partial = self.folder / f"{name}.tmp"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / f"{name}.done")


@contextmanager
def staged(destination: Path, key: str, *, force: bool) -> Generator[Stage]:
    """A staging folder for `destination`; leaving the block without an error publishes it.

    `key` identifies the export: stages left behind by an export with another key are dropped.

    Raises:
        RequestError: the destination exists and `force` is off, or its parent does not exist.
        ResourceError: another export works on it, or the disk is full; then nothing is left behind.
    """
    destination = Path(os.path.abspath(destination))  # noqa: PTH100  # resolve() would follow a link that is to be replaced
    if not destination.parent.is_dir():
        raise RequestError(f"{destination.parent}: no such folder: create it first, or choose another destination")
    folder = destination.parent / f".{destination.name}.partial"
    _restore(destination)
    refuse_existing(destination, force=force)
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder):
            refuse_existing(destination, force=force)
            _prepare(folder, key)
            yield Stage(folder, destination)
            _publish(folder, destination)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            shutil.rmtree(folder, ignore_errors=True)
            raise ResourceError(
                f"{destination.parent}: the disk is full; the partial files have been removed; free some space and run it again"
            ) from error
        raise ResourceError(f"{destination}: cannot be written ({error}): check the path and its permissions") from error


def refuse_existing(destination: Path, *, force: bool) -> None:
    """Refuses a destination that would not be replaced.

    Raises:
        RequestError: it exists and `force` is off, or it is a file.
    """
    if destination.exists() and not force:
        raise RequestError(f"{destination} already exists; choose another name, or replace it with --force")
    if destination.exists() and not destination.is_dir():
        raise RequestError(f"{destination} is a file, expected the name of a folder to write")


def _prepare(folder: Path, key: str) -> None:
    try:
        same = (folder / _KEY).read_text("utf-8") == key
    except OSError:
        same = False
    if not same:
        for path in folder.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / _KEY).write_text(key, "utf-8")
    for name in ("bundle", "work"):
        (folder / name).mkdir(exist_ok=True)


def _publish(folder: Path, destination: Path) -> None:
    bundle = folder / "bundle"
    _sync(bundle)
    if destination.exists() and not _exchange(bundle, destination):
        old = destination.with_name(f".{destination.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        destination.replace(old)
        bundle.replace(destination)
        shutil.rmtree(old, ignore_errors=True)
    elif bundle.exists() and not destination.exists():
        bundle.replace(destination)
    _sync(destination.parent)
    shutil.rmtree(folder, ignore_errors=True)


def _restore(destination: Path) -> None:
    """Puts an older export back if a replacement was killed between its two renames."""
    old = destination.with_name(f".{destination.name}.old")
    if old.is_dir() and not destination.exists():
        old.replace(destination)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step where the system can (Linux, renameat2); False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sync(folder: Path) -> None:
    """Makes the names in `folder` durable, where folders can be opened."""
    with suppress(OSError, PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Holds the lock file in `folder`; the system lets go of it when the process ends, however it ends."""
    path = folder / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _take(descriptor) or not _same(descriptor, path):
            raise ResourceError(
                f"another export is writing {folder.name.removeprefix('.').removesuffix('.partial')}: wait for it, or choose another name"
            )
        yield
    finally:
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file is still at `path`: another export may have published and removed the folder."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def _take(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt  # exists there only

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # exists elsewhere only

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
