"""Settings that `diffusette bench --advise` found best for a model on this machine; `auto` uses them from then on.

They are in `advice.json` in the cache folder: model hash → provider and threads, with the processor of the measurement. Advice for another
processor is ignored. `diffusette bench --forget` deletes the file. It has no memory plan, which depends on free memory, and no speed, which
changes the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from ...models import manifest as manifests
from ...models.errors import BundleError, ResourceError
from ...models.formats.atomic_file import replace_file
from ...models.formats.small_file import read_json
from ...models.manifest import Manifest
from . import hardware
from .graph_cache import default_folder, why_unwritable
from .providers import TABLE, why_missing


class Advice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best measured settings."""

    provider: str
    threads: int
    processor: str
    date: str
    """The time of the measurement; UTC, ISO 8601."""


def recall(manifest: Manifest) -> Advice | None:
    """Return the advice for this model on this machine; None if nothing was measured or the file cannot be read."""
    path = _path()
    if path is None:
        return None
    try:
        found = read_json(path, dict[str, Advice]).get(manifests.fingerprint(manifest))
    except BundleError:
        return None
    if found is None or found.processor != hardware.processor() or found.threads > hardware.cores() or found.provider not in TABLE:
        return None
    return None if why_missing(TABLE[found.provider]) else found


def followed(manifest: Manifest, provider: str, threads: int) -> tuple[str, int]:
    """Return the best measured settings if both arguments are defaults ("auto", 0); otherwise return them unchanged."""
    found = recall(manifest) if isinstance(cast("object", provider), str) and provider == "auto" and threads == 0 else None
    return (provider, threads) if found is None else (found.provider, found.threads)


def remember(manifest: Manifest, advice: Advice) -> Path:
    """Keep `advice` for this model; return the file.

    Raises:
        RequestError, ResourceError: it cannot be written.
    """
    path, problem = _path(), why_unwritable(default_folder())
    if path is None or problem:
        raise ResourceError(f"advice: {problem}")
    try:
        kept = read_json(path, dict[str, Advice])
    except BundleError:
        kept = {}
    kept[manifests.fingerprint(manifest)] = advice
    replace_file(path, msgspec.json.format(msgspec.json.encode(kept), indent=2))
    return path


def forget() -> Path | None:
    """Delete all advice; return the file that was deleted."""
    path = _path()
    if path is None or not path.is_file():
        return None
    path.unlink()
    return path


def _path() -> Path | None:
    folder = default_folder()
    return None if folder is None else folder / "advice.json"
