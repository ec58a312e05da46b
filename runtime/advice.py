"""What `diffusette bench --advise` found best for a model on this machine, and `auto` takes from then on.

A small file beside the caches, `advice.json`: model hash → provider and threads, with the processor it was measured on. Advice for
another processor is not followed. `diffusette bench --forget` deletes the file. Memory plans are not in it: which one fits depends on
what is free now; nor is speed, which changes the pictures.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..models import manifest as manifests
from ..models.errors import ResourceError
from ..models.manifest import Manifest
from . import machine
from .graph_cache import default_folder, why_unwritable
from .providers import TABLE, why_missing
from .whole_file import replace_file


class Advice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best settings that were measured."""

    provider: str
    threads: int
    processor: str
    date: str
    """When it was measured; UTC, ISO 8601."""


def recall(manifest: Manifest) -> Advice | None:
    """The advice for this model on this machine; none where nothing was measured, or the file cannot be read."""
    path = _path()
    if path is None:
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Advice]).get(manifests.fingerprint(manifest))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if found is None or found.processor != machine.processor() or found.threads > machine.cores() or found.provider not in TABLE:
        return None
    return None if why_missing(TABLE[found.provider]) else found


def followed(manifest: Manifest, provider: str, threads: int) -> tuple[str, int]:
    """`provider` and `threads` where both were left open ("auto", 0): what was found best; else as they are."""
    found = recall(manifest) if provider == "auto" and threads == 0 else None
    return (provider, threads) if found is None else (found.provider, found.threads)


def remember(manifest: Manifest, advice: Advice) -> Path:
    """Keep `advice` for this model; gives the file.

    Raises:
        RequestError, ResourceError: it cannot be written.
    """
    path, problem = _path(), why_unwritable(default_folder())
    if path is None or problem:
        raise ResourceError(f"advice: {problem}")
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, Advice])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        kept = {}
    kept[manifests.fingerprint(manifest)] = advice
    replace_file(path, msgspec.json.format(msgspec.json.encode(kept), indent=2))
    return path


def forget() -> Path | None:
    """Delete all advice; gives the file that was there."""
    path = _path()
    if path is None or not path.is_file():
        return None
    path.unlink()
    return path


def _path() -> Path | None:
    folder = default_folder()
    return None if folder is None else folder / "advice.json"
