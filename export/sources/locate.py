"""Locate a model, as plain values that another process can use, and open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...models import families
from ...models.errors import RequestError
from ...models.formats import model_config
from ...models.formats.small_file import read_json
from . import onnx_folder, tiny_autoencoder
from .diffusers_folder import Source, open_folder
from .single_file_checkpoint import open_checkpoint


@dataclass(frozen=True)
class Origin:
    """A model on this disk, and the additions requested for it."""

    path: Path
    """A diffusers folder, one of ONNX graphs, or a checkpoint in one safetensors file."""
    tiny_vae: Path | None = None
    """A tiny autoencoder whose decoder goes into the bundle."""
    name: str | None = None
    """Its name on the hub, if it came from one."""
    revision: str | None = None
    """The hub's commit."""
    prediction: str | None = None
    """Prediction type that overrides the source's."""
    family: str | None = None
    """Family that overrides what the configs say."""
    config: Path | None = None
    """A JSON file with keys that override those of the source's configs, by component."""


def locate(
    source: Path | str, revision: str | None, tiny_vae: Path | None, progress: Callable[[str, float], None], prediction: str | None = None
) -> Origin:
    """Locate `source`: a path, or, if it is text of the form `owner/name` and not an existing path, a model to fetch from the hub.

    Raises:
        RequestError: the hub has no such model or revision; or a revision of something that is not on a hub.
        BundleError: see `hub.fetch`.
        ResourceError: the disk is not enough.
    """
    if isinstance(source, str) and not Path(source).exists():
        from . import hub  # the network's library, only where it is needed

        if hub.is_id(source):
            found = hub.fetch(source, revision, progress)
            return Origin(found.folder, tiny_vae, source, found.commit, prediction)
    if revision is not None:
        raise RequestError(f"--revision {revision}: {source} is a path; revisions are of models on a hub, given as owner/name")
    return Origin(Path(source), tiny_vae, prediction=prediction)


_KINDS: dict[str, model_config.Kind] = {
    "unet": model_config.Unet,
    "vae": model_config.Vae,
    "text_encoder": model_config.TextEncoder,
    "text_encoder_2": model_config.TextEncoder,
}


def _configured(source: Source, path: Path) -> Source:
    """`source` with the keys in the file `path`: {"unet": {…}, "vae": {…}, "scheduler": {…}, …}."""
    given = read_json(path, dict[str, dict[str, Any]])
    unknown = given.keys() - {*_KINDS, "scheduler"} | given.keys() - source.configs.keys()
    if unknown:
        has = ", ".join(name for name in source.configs if name in {*_KINDS, "scheduler"})
        raise RequestError(f"{path}: {min(unknown)!r} is no part of this model; expected an object with some of {has}")
    for name, kind in _KINDS.items():
        model_config.check(given.get(name, {}), kind, f"{path}: {name}")
    configs = {name: {**config, **given.get(name, {})} for name, config in source.configs.items()}
    return replace(source, configs=MappingProxyType(configs), guess="" if "prediction_type" in given.get("scheduler", {}) else source.guess)


def _of_family(source: Source, name: str) -> Source:
    family = families.FAMILIES.get(name)
    if family is None:
        raise RequestError(f"--family {name}: expected one of {', '.join(families.FAMILIES)}")
    missing = [encoder for encoder in family.text_encoders if encoder not in source.configs]
    if missing:
        raise RequestError(
            f"--family {name}: {source.path} has no {missing[0]}, which that family needs; it looks like {source.family.name}"
        )
    return replace(source, family=family)


def open_source(origin: Origin) -> Source:
    """The model at `origin`.

    Raises:
        BundleError: damaged, hostile, unknown, or not there.
        RequestError: a tiny autoencoder that does not belong to it.
    """
    path = origin.path
    if onnx_folder.is_folder(path):
        found = onnx_folder.open_graphs(path)
    else:
        found = open_folder(path) if path.is_dir() or not path.exists() else open_checkpoint(path, origin.prediction)
        if origin.prediction is not None:
            scheduler = {**found.configs["scheduler"], "prediction_type": origin.prediction}
            found = replace(found, configs=MappingProxyType({**found.configs, "scheduler": scheduler}))
        if origin.config is not None:
            found = _configured(found, origin.config)
        if origin.family is not None:
            found = _of_family(found, origin.family)
    if origin.name is not None:
        found = replace(found, name=origin.name, revision=origin.revision)
    return found if origin.tiny_vae is None else tiny_autoencoder.add(found, origin.tiny_vae)
