"""Cache optimized graphs on disk, so that later starts are faster.

Measured with an int8 U-Net of SD 1.5's size (1.2 GB): it opens in 1.6 s instead of 10. Reordered weights are mapped instead of copied, so
the peak of anonymous memory is 0.6 GB instead of 2.9 GB.

An entry is a folder `<key>` with `model.onnx`, `model.onnx_data` and `entry.json`. The key depends on graph, provider, options, processor
and ORT version. Entries are written to a temporary folder and renamed, so a reader never sees an incomplete one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ...models.errors import BundleError
from ...models.formats.small_file import read_json
from . import hardware

LIMIT = 8 << 30
"""The largest size of the cache in bytes; the least recently used entries are removed first."""
MINIMUM = 64 << 20
"""Graph folders with fewer bytes are not cached: they open faster than an optimized graph is written."""
_GRAPH, _DATA, _ENTRY, _TEMPORARY = "model.onnx", "model.onnx_data", "entry.json", ".making-"
_STALE = 24 * 3600.0


def default_folder() -> Path | None:
    """The cache folder: `DIFFUSETTE_CACHE`, or the system's cache folder; None without a home folder."""
    named = os.environ.get("DIFFUSETTE_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base) / "diffusette" / "cache" if base else None
    if sys.platform != "darwin" and os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "diffusette"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "diffusette"


def folder_for(cache: str | Path | None, graphs: Iterable[Path]) -> tuple[Path | None, str]:
    """Return the folder for optimized `graphs`, or None if none of them is worth caching; also return a note if a folder is missing.

    `cache` is a folder, "auto" for the default folder, or None to disable caching.
    """
    if cache is None or not any(pays(graph) for graph in graphs):
        return None, ""
    folder = default_folder() if cache == "auto" else Path(cache)
    return folder, "" if folder else f"optimized graphs are not cached: {why_unwritable(None)}"


def pays(graph: Path) -> bool:
    """Whether `graph` with its weights is large enough to be worth caching."""
    return _bytes(graph.resolve().parent) >= MINIMUM


def size(folder: Path) -> int:
    """Return the bytes of all optimized graphs in `folder`."""
    try:
        return sum(_bytes(entry) for entry in folder.iterdir() if (entry / _ENTRY).exists())
    except OSError:
        return 0


def why_unwritable(folder: Path | None) -> str:
    """Create `folder`, and return why nothing can be cached there; empty if it can."""
    if folder is None:
        return "no home folder: set DIFFUSETTE_CACHE to a folder for caches"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}): set DIFFUSETTE_CACHE to another folder"


def get(cache: Path, graph: Path, parts: tuple[Any, ...], make: Callable[[Path], None]) -> tuple[Path | None, str]:
    """Return the optimized form of `graph`, created by `make(path)` if it is not cached yet; or None and the reason.

    `parts` is everything else that the result depends on. Exceptions of `make` are passed on after its files are removed. A full or
    read-only disk is not an error; the graph is then not cached.
    """
    if cache.is_dir() and (why := _stranger(cache.resolve())):
        return None, f"optimized graphs are not cached: {why}"
    entry = cache / _key(graph, parts)
    state = _state(entry)
    if state != "absent":
        return (entry / _GRAPH, "") if state == "ready" else (None, state)
    why = why_unwritable(cache) or _why_no_room(cache, graph)
    if why:
        return None, f"the optimized graph is not cached: {why}"
    making = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=cache))
    try:
        try:
            make(making / _GRAPH)
            checksums = {file.name: _checksum(file) for file in making.iterdir()}
            (making / _ENTRY).write_bytes(msgspec.json.encode(_Entry(files=checksums)))
            making.rename(entry)
        except Exception:
            if _state(entry) == "ready":  # another process was faster
                return entry / _GRAPH, ""
            if shutil.disk_usage(cache).free > _FLOOR:
                raise
            return None, f"the optimized graph is not cached: the disk of {cache} is full"
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return entry / _GRAPH, ""


def set_aside(cached: Path, reason: str) -> str:
    """Mark `cached`, a result of `get`, as unusable because of `reason`; return `reason`."""
    shutil.rmtree(cached.parent, ignore_errors=True)
    try:
        cached.parent.mkdir()
        (cached.parent / _ENTRY).write_bytes(msgspec.json.encode(_Entry(unusable=reason)))
    except OSError:
        pass
    return reason


_FLOOR = 64 << 20
"""If fewer bytes are free, a failure to write counts as a full disk."""


def _state(entry: Path) -> str:
    """Return `ready`, `absent`, or why the entry is unusable. A ready entry is marked as used now."""
    if not os.path.lexists(entry):
        return "absent"
    try:
        if why := _stranger(entry):
            return f"the optimized graph in the cache is not used: {why}"
        content = read_json(entry / _ENTRY, _Entry)
        if content.unusable:
            return content.unusable
        known = _GRAPH in content.files and content.files.keys() <= {_GRAPH, _DATA}
        if known and all(_checksum(entry / name) == found for name, found in content.files.items()):
            os.utime(entry)
            return "ready"
    except (OSError, BundleError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return "absent"


class _Entry(msgspec.Struct, frozen=True):
    files: dict[str, str] = {}
    """File → its checksum."""
    unusable: str = ""


def _checksum(path: Path) -> str:
    """Size and CRC-32 of a file: they find damage, at 4 GB/s; strangers are kept out by owner and mode."""
    found = path.stat()
    return _crc32(path, found.st_size, found.st_mtime_ns)


@lru_cache(256)
def _crc32(path: Path, size: int, _time: int) -> str:
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(4 << 20):
            checksum = zlib.crc32(piece, checksum)
    return f"{size}-{checksum:08x}"


def _stranger(path: Path) -> str:
    """Return why somebody else may have written into the folder `path`; empty if nobody can have."""
    if sys.platform == "win32":
        return ""  # the cache is inside the user's profile
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is not a folder; delete it"
    if found.st_uid not in {os.geteuid(), 0}:
        return f"{path} belongs to another user; delete it, or set DIFFUSETTE_CACHE to a folder of your own"
    if found.st_mode & 0o022:
        return f"{path} can be written by other users; take their right away with chmod go-w, or set DIFFUSETTE_CACHE to another folder"
    return ""


def _key(graph: Path, parts: tuple[Any, ...]) -> str:
    """Return the key of an entry. Changed files differ in size or modification time; replacing a bundle by renaming changes both."""
    folder = graph.resolve().parent
    files = sorted((file.name, found.st_size, found.st_mtime_ns) for file in folder.iterdir() if (found := _about(file)))
    text = json.dumps([str(graph.resolve()), files, parts, hardware.processor(), sorted(hardware.flags())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _about(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # a link to nowhere, which no graph uses
        return None


def _why_no_room(cache: Path, graph: Path) -> str:
    """Make room for a copy of the graph's folder; return why there is no room, or an empty string."""
    need = _bytes(graph.resolve().parent) * 3 // 2
    if need > LIMIT:
        return f"it needs {need >> 20} MiB, and the cache holds at most {LIMIT >> 20} MiB"
    _make_room(cache, need)
    free = shutil.disk_usage(cache).free
    return f"{cache} has {free >> 20} MiB free, expected {2 * need >> 20} MiB" if free < 2 * need else ""


def _bytes(folder: Path) -> int:
    """Bytes of the regular files in `folder`; whatever else lies there does not count."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _make_room(cache: Path, need: int) -> None:
    """Remove leftovers of killed processes, then the least recently used entries, until `need` more bytes fit within the limit."""
    entries: list[tuple[float, int, Path]] = []
    for entry in cache.iterdir():
        if not (entry / _ENTRY).exists():
            if entry.name.startswith(_TEMPORARY) and time.time() - entry.stat().st_mtime > _STALE:
                shutil.rmtree(entry, ignore_errors=True)
            continue
        entries.append((entry.stat().st_mtime, _bytes(entry), entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total + need <= LIMIT:
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= size
