"""Optimized graphs on disk: what ORT made of a graph at the first start, for every later start.

Measured on a U-Net of SD 1.5's size, 8-bit (1.2 GB): opened in 1.6 s instead of 10, and, since weights that were reordered are
then mapped instead of copied, with 0.6 GB of anonymous memory instead of 2.9 GB at the peak.

An entry is a folder `<key>` with `model.onnx`, `model.onnx_data` and `entry.json`; the key says graph, provider, options,
processor and ORT version. Entries are made in a folder of another name and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import machine

LIMIT = 8 << 30
"""Bytes that the cache may take; what was not used for longest goes first."""
MINIMUM = 64 << 20
"""Bytes of a graph's folder below which nothing is cached: it opens in less time than the optimized graph takes to be written."""
_GRAPH, _ENTRY, _TEMPORARY = "model.onnx", "entry.json", ".making-"
_STALE = 24 * 3600.0


def default_folder() -> Path | None:
    """Where caches go: `DIFFUSETTE_CACHE`, or the system's place for them; none where there is no home."""
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
    """The folder in which optimized `graphs` are kept, if any of them is worth it; none, and a note where there should be one.

    `cache` is a folder, "auto" for the system's place, or None to keep nothing.
    """
    if cache is None or not any(pays(graph) for graph in graphs):
        return None, ""
    folder = default_folder() if cache == "auto" else Path(cache)
    return folder, "" if folder else f"optimized graphs are not cached: {why_unwritable(None)}"


def pays(graph: Path) -> bool:
    """Whether `graph` with its weights is large enough to be worth a place in the cache."""
    return _bytes(graph.resolve().parent) >= MINIMUM


def size(folder: Path) -> int:
    """Bytes of all optimized graphs in `folder`."""
    try:
        return sum(_bytes(entry) for entry in folder.iterdir() if (entry / _ENTRY).exists())
    except OSError:
        return 0


def why_unwritable(folder: Path | None) -> str:
    """Why nothing can be cached in `folder`; empty when it can. Makes the folder."""
    if folder is None:
        return "there is no home folder: set DIFFUSETTE_CACHE to a folder for caches"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}): set DIFFUSETTE_CACHE to another folder"


def get(cache: Path, graph: Path, parts: tuple[Any, ...], make: Callable[[Path], None]) -> tuple[Path | None, str]:
    """The optimized form of `graph`, made by `make(path)` if it is not there yet; or none and why not.

    `parts` is everything else that the result depends on. What `make` raises is passed on, its files removed,
    except for a full or read-only disk, which only means that there is no cache.
    """
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
            sizes = {file.name: file.stat().st_size for file in making.iterdir()}
            (making / _ENTRY).write_text(json.dumps({"files": sizes}))
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
    """Keep `cached`, a result of `get`, from being tried again because of `reason`, which is given back."""
    shutil.rmtree(cached.parent, ignore_errors=True)
    try:
        cached.parent.mkdir()
        (cached.parent / _ENTRY).write_text(json.dumps({"unusable": reason}))
    except OSError:
        pass
    return reason


_FLOOR = 64 << 20
"""Free bytes below which a failure to write is taken for a full disk."""


def _state(entry: Path) -> str:
    """`ready`, `absent`, or why the entry is not to be used. A ready one is marked as used now."""
    try:
        said = json.loads((entry / _ENTRY).read_bytes())
        if "unusable" in said:
            return str(said["unusable"])
        if all((entry / name).stat().st_size == size for name, size in said["files"].items()):
            os.utime(entry)
            return "ready"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return "absent"


def _key(graph: Path, parts: tuple[Any, ...]) -> str:
    """Files that changed have another size or time; a bundle is replaced by renaming, which changes both."""
    folder = graph.resolve().parent
    files = sorted((file.name, found.st_size, found.st_mtime_ns) for file in folder.iterdir() for found in [file.stat()])
    text = json.dumps([str(graph.resolve()), files, parts, machine.processor(), sorted(machine.flags())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _why_no_room(cache: Path, graph: Path) -> str:
    """Make room for a copy of the graph's folder; why there is none, or empty."""
    need = _bytes(graph.resolve().parent) * 3 // 2
    if need > LIMIT:
        return f"its {need >> 20} MiB are more than the cache may hold"
    _make_room(cache, need)
    free = shutil.disk_usage(cache).free
    return f"{cache} has {free >> 20} MiB free, and {2 * need >> 20} are wanted" if free < 2 * need else ""


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _make_room(cache: Path, need: int) -> None:
    """Remove what killed processes left half made, then what was not used for longest, until `need` bytes more are within the limit."""
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
