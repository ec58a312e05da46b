"""Read a diffusers folder without trusting it; `Source` is what every reader returns.

Weights are read from safetensors only, one tensor at a time; class names are compared with a list and never imported
by name; code in a model's folder is never run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models import families
from ...models.errors import BundleError
from ...models.formats import model_config, scheduler_config
from ...models.formats import safetensors_file as safetensors
from ...models.formats.small_file import MAX_CONFIG, optional_json, read_bytes, read_json
from ...models.manifest import Manifest

Array = NDArray[np.float32]
ALLOWED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "safety_checker": ("StableDiffusionSafetyChecker",),
    }
)
"""Classes of the components that are exported."""
LICENCE_FILE = re.compile(r"(?i:licen[cs]es?|copying|notice|use[_-]policy|attachment)([._ -][\w. -]{0,99})?|README\.md")
"""Names of the files at the top of a model that state its licence."""
"""Files at the top of a folder that say under which terms it may be used."""
STEMS = ("diffusion_pytorch_model", "model")
"""Stems of weight files, before `.safetensors` or `.fp16.safetensors`."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Weights:
    """Named tensors on disk, read one by one as float32."""

    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Callable[[], Array]]

    def read(self, name: str) -> Array:
        """The tensor as a float32 copy."""
        return self.readers[name]()

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """The same tensors as `{new: old}`; what is not named is left out."""
        return Weights({new: self.shapes[old] for new, old in names.items()}, {new: self.readers[old] for new, old in names.items()})


@dataclass(frozen=True)
class Source:
    """A model as its authors ship it."""

    name: str
    path: Path
    """The folder, or the one file."""
    family: families.Family
    configs: Mapping[str, families.Config]
    """`unet`, `vae`, `scheduler`, the text encoders and `extras`: each one's config."""
    weights: Callable[[str], Weights]
    """The tensors of `unet`, `vae`, a text encoder or one of `extras`."""
    overrides: families.Config
    """`diffusette.json` of the folder: defaults that its author wants."""
    licence: str = "unknown"
    revision: str | None = None
    extras: tuple[str, ...] = ()
    """Components beyond the family's: `safety_checker`, `tiny_decoder`."""
    others: tuple[Path, ...] = ()
    """Files elsewhere that belong to it."""
    notes: tuple[str, ...] = ()
    """Warnings for the user."""
    guess: str = ""
    """Why the prediction type of the scheduler is a guess; empty if it is known."""
    graphs: Manifest | None = None
    """Facts of a folder of graphs; None if the source has weights."""

    @property
    def components(self) -> tuple[str, ...]:
        """Components of the bundle, in the order in which they are exported."""
        has = self.family.components if self.graphs is None else self.graphs.components
        return (*(name for name in self.family.components if name in has), *self.extras)

    @property
    def folder(self) -> Path:
        """The folder that is searched for tokenizers."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> list[Path]:
        """Every file that the export may read."""
        inside = sorted(path for path in self.path.rglob("*") if path.is_file()) if self.path.is_dir() else [self.path]
        return [*inside, *self.others]

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent pixel."""
        return 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)


def open_folder(folder: Path) -> Source:
    """Open the diffusers folder `folder`.

    Raises:
        BundleError: no such folder, a class outside `ALLOWED`, weights that are a pickle, a config that cannot be read.
    """
    index = read_json(folder / "model_index.json")
    components: dict[str, tuple[Any, Any]] = {}
    for name, value in index.items():
        if isinstance(value, list) and len(cast("list[Any]", value)) == 2:
            components[name] = (value[0], value[1])
    for name, classes in ALLOWED.items():
        found = components.get(name, (None, None))[1]
        if found is not None and found not in classes:
            raise BundleError(
                f"{folder / 'model_index.json'}: {name} is a {found!r}, expected {' or '.join(classes)}: this architecture is not supported"
            )
    missing = [name for name in ("unet", "vae", "scheduler") if components.get(name, (None, None))[1] is None]
    if missing:
        raise BundleError(f"{folder / 'model_index.json'}: no {' and no '.join(missing)}: expected a Stable Diffusion pipeline")
    notes = list[str]()
    unet, vae = (
        _config(folder / name / "config.json", kind, notes) for name, kind in (("unet", model_config.Unet), ("vae", model_config.Vae))
    )
    family = families.detect(str(index.get("_class_name")), components, unet, vae["latent_channels"])
    configs = {"unet": unet, "vae": vae, "scheduler": read_json(folder / "scheduler/scheduler_config.json"), "model_index": index}
    notes += _unread(folder / "scheduler/scheduler_config.json", scheduler_config.unknown(configs["scheduler"]))
    notes += _unread(folder / "model_index.json", [key for key in index if key not in components and key not in _INDEX and key[0] != "_"])
    for name in family.text_encoders:
        configs[name] = _config(folder / name / "config.json", model_config.TextEncoder, notes)
    checker = components.get("safety_checker", (None, None))[1] is not None
    if checker and not (folder / "safety_checker/config.json").exists():
        checker = False
        notes.append(f"{folder}: model_index.json names a safety checker, but it is not there: the bundle has none")
    if checker:
        configs["safety_checker"] = read_json(folder / "safety_checker/config.json")
        configs["feature_extractor"] = optional_json(folder / "feature_extractor/preprocessor_config.json")
    return Source(
        name=families.model_name(index.get("_name_or_path"), folder.resolve().name),
        path=folder,
        family=family,
        configs=MappingProxyType(configs),
        weights=lambda name: open_weights(folder / name),
        overrides=optional_json(folder / "diffusette.json"),
        licence=licence_of(folder),
        extras=("safety_checker",) if checker else (),
        notes=tuple(notes),
    )


def _config(path: Path, kind: model_config.Kind, notes: list[str]) -> dict[str, Any]:
    """The checked config `path`, with defaults for what it leaves out; adds a note on keys that nothing reads."""
    config = read_json(path)
    model_config.check(config, kind, path)
    notes += _unread(path, model_config.unknown(config, kind))
    return model_config.complete(config, kind)


def _unread(path: Path, keys: list[str]) -> list[str]:
    return [f"{path}: nothing reads {', '.join(keys[:20])}; if that changes the model's images, the bundle's are different"] if keys else []


_INDEX = {"force_zeros_for_empty_prompt", "add_watermarker", "requires_safety_checker"}
"""Keys of model_index.json that are read, or that change no image."""


def open_weights(folder: Path) -> Weights:
    """The safetensors files in `folder`, by their index where they are sharded.

    Raises:
        BundleError: none, or only pickles; a damaged file; a dtype that holds no weights.
    """
    readers: dict[str, Callable[[], Array]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        part = of_file(path)
        readers |= part.readers
        shapes |= part.shapes
    return Weights(shapes, readers)


def of_file(path: Path) -> Weights:
    """The tensors of one safetensors file.

    Raises:
        BundleError: damaged, hostile, or no safetensors file.
    """
    file = safetensors.open_weights(path)
    return Weights({name: tuple(entry.shape) for name, entry in file.entries.items()}, {name: partial(_read, file, name) for name in file})


def _read(file: safetensors.Weights, name: str) -> Array:
    return file.read(name, np.float32)


class _Index(msgspec.Struct, frozen=True):
    """The list of the parts of a component's weights."""

    weight_map: dict[str, str]


def _weight_files(folder: Path) -> list[Path]:
    for stem in STEMS:
        for variant in ("", ".fp16"):
            whole, sharded = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
            if os.path.lexists(whole):
                return [whole]
            if os.path.lexists(sharded):
                names = sorted(set(read_json(sharded, _Index).weight_map.values()))
                bad = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
                if bad:
                    raise BundleError(f"{sharded}: {bad[0]!r} is not a safetensors file beside it: refused")
                return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise BundleError(f"{folder / pickles[0]} is a pickle, which can run code; expected .safetensors; convert it in a sandbox first")
    raise BundleError(f"{folder}: no weights; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors")


def text_names(shapes: Iterable[str]) -> dict[str, str]:
    """The names of a text encoder's tensors as they are in bundles, with what they are called in the source.

    transformers 5 names the tensors of CLIPTextModel without the level that older files (and every LoRA) have.
    """
    return {key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": key for key in shapes}


def modules(source: Source) -> dict[str, set[str]]:
    """The layers that a LoRA may change, of the U-Net and the text encoders, by their names in the bundle."""
    found = {name: set(text_names(source.weights(name).shapes)) for name in source.family.text_encoders}
    found["unet"] = set(source.weights("unet").shapes)
    return {name: {key.removesuffix(".weight") for key in keys if key.endswith(".weight")} for name, keys in found.items()}


def licence_of(folder: Path) -> str:
    """The licence in the model card's front matter (its name if `license` is "other"), or "unknown"."""
    try:
        lines = read_bytes(folder / "README.md", MAX_CONFIG, "a model card").decode("utf-8", "replace").splitlines()
    except BundleError:
        return "unknown"
    if not lines or lines[0].strip() != "---":
        return "unknown"
    said: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        said.setdefault(key, value.strip().strip("\"'"))
    found = said.get("license") or "unknown"
    return said.get("license_name") or found if found == "other" else found


CONCEPTS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
"""Tensors of the safety checker: concept embeddings, and the cosine threshold of each (`…_weights`)."""
