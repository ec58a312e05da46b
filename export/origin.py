"""Where a model comes from, in words that another process understands, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..models.errors import RequestError
from . import graph_folder, tiny
from .ldm import open_checkpoint
from .source import Source, open_folder


@dataclass(frozen=True)
class Origin:
    """A model on this disk, and what was asked for to go with it."""

    path: Path
    """A diffusers folder, one of ONNX graphs, or a checkpoint in one safetensors file."""
    tiny_vae: Path | None = None
    """A tiny autoencoder whose decoder goes into the bundle."""
    name: str | None = None
    """What a hub calls it, if it came from one."""
    revision: str | None = None
    """The hub's commit."""


def locate(source: Path | str, revision: str | None, tiny_vae: Path | None, progress: Callable[[str, float], None]) -> Origin:
    """Where `source` is: a path, or, as text of the form `owner/name` that is no existing path, fetched from the hub.

    Raises:
        RequestError: the hub has no such model or revision; or a revision of something that is no hub's.
        BundleError: see `hub.fetch`.
        ResourceError: the disk does not suffice.
    """
    if isinstance(source, str) and not Path(source).exists():
        from . import hub  # the network's library, only where it is needed

        if hub.is_id(source):
            found = hub.fetch(source, revision, progress)
            return Origin(found.folder, tiny_vae, source, found.commit)
    if revision is not None:
        raise RequestError(f"--revision {revision}: {source} is a path; revisions are of models on a hub, given as owner/name")
    return Origin(Path(source), tiny_vae)


def open_source(origin: Origin) -> Source:
    """The model at `origin`.

    Raises:
        BundleError: damaged, hostile, unknown, or not there.
        RequestError: a tiny autoencoder that does not belong to it.
    """
    path = origin.path
    if graph_folder.is_folder(path):
        found = graph_folder.open_graphs(path)
    else:
        found = open_folder(path) if path.is_dir() or not path.exists() else open_checkpoint(path)
    if origin.name is not None:
        found = replace(found, name=origin.name, revision=origin.revision)
    return found if origin.tiny_vae is None else tiny.add(found, origin.tiny_vae)
