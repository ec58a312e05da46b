"""Where a model comes from, in words that another process understands, and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import tiny
from .ldm import open_checkpoint
from .source import Source, open_folder


@dataclass(frozen=True)
class Origin:
    """A model on this disk, and what was asked for to go with it."""

    path: Path
    """A diffusers folder, or a checkpoint in one safetensors file."""
    tiny_vae: Path | None = None
    """A tiny autoencoder whose decoder goes into the bundle."""


def open_source(origin: Origin) -> Source:
    """The model at `origin`.

    Raises:
        BundleError: damaged, hostile, unknown, or not there.
        RequestError: a tiny autoencoder that does not belong to it.
    """
    path = origin.path
    found = open_folder(path) if path.is_dir() or not path.exists() else open_checkpoint(path)
    return found if origin.tiny_vae is None else tiny.add(found, origin.tiny_vae)
