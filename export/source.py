"""Where weights come from: a diffusers folder, read without trusting it.

Weights are read from safetensors only, one tensor at a time; class names are compared with a list and never imported
by name; code in a model's folder is never run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..models import families
from ..models import weights as safetensors
from ..models.errors import BundleError
from ..models.manifest import Manifest

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
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSES.md", "LICENCE", "NOTICE", "README.md")
"""Files at the top of a folder that say under which terms it may be used."""
STEMS = ("diffusion_pytorch_model", "model")
"""What files of weights are called, before `.safetensors` or `.fp16.safetensors`."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class Weights:
    """Named tensors on disk, read one by one as float32."""

    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Callable[[], Array]]

    def read(self, name: str) -> Array:
        """The tensor as float32, in memory of its own."""
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
    """What the user should know about it."""
    graphs: Manifest | None = None
    """What a folder of graphs says of itself; None where there are weights."""

    @property
    def components(self) -> tuple[str, ...]:
        """Components of the bundle, in the order in which they are exported."""
        has = self.family.components if self.graphs is None else self.graphs.components
        return (*(name for name in self.family.components if name in has), *self.extras)

    @property
    def folder(self) -> Path:
        """Where tokenizers are looked for."""
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
    """The diffusers folder at `folder`.

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
    unet, vae = read_json(folder / "unet/config.json"), read_json(folder / "vae/config.json")
    family = families.detect(str(index.get("_class_name")), components, unet, int(vae.get("latent_channels", 4)))
    configs = {"unet": unet, "vae": vae, "scheduler": read_json(folder / "scheduler/scheduler_config.json")}
    for name in family.text_encoders:
        configs[name] = read_json(folder / name / "config.json")
    checker, notes = components.get("safety_checker", (None, None))[1] is not None, list[str]()
    if checker and not (folder / "safety_checker/config.json").exists():
        checker = False
        notes.append(f"{folder}: model_index.json names a safety checker, but it is not there: the bundle has none")
    if checker:
        configs["safety_checker"] = read_json(folder / "safety_checker/config.json")
        configs["feature_extractor"] = optional_json(folder / "feature_extractor/preprocessor_config.json")
    return Source(
        name=str(index.get("_name_or_path") or folder.resolve().name),
        path=folder,
        family=family,
        configs=MappingProxyType(configs),
        weights=lambda name: open_weights(folder / name),
        overrides=optional_json(folder / "diffusette.json"),
        licence=licence_of(folder),
        extras=("safety_checker",) if checker else (),
        notes=tuple(notes),
    )


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


def _weight_files(folder: Path) -> list[Path]:
    for stem in STEMS:
        for variant in ("", ".fp16"):
            whole, sharded = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
            if whole.is_file():
                return [whole]
            if sharded.is_file():
                names = sorted(set(read_json(sharded).get("weight_map", {}).values()))
                bad = [name for name in names if Path(str(name)).name != name or not str(name).endswith(".safetensors")]
                if bad:
                    raise BundleError(f"{sharded}: {bad[0]!r} is not a safetensors file beside it: refused")
                return [folder / name for name in names]
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise BundleError(f"{folder / pickles[0]} is a pickle, which can run code; expected .safetensors: convert it in a sandbox first")
    raise BundleError(f"{folder}: no weights; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 16 MB.

    Raises:
        BundleError: missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > 16_000_000:
            raise BundleError(f"{path}: {path.stat().st_size} bytes is no config; expected a small JSON file")
        value: Any = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}): expected a diffusers folder, with model_index.json at its top"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def optional_json(path: Path) -> dict[str, Any]:
    """`read_json`, or nothing where there is no such file."""
    return read_json(path) if path.exists() else {}


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
    """What the model card's front matter says after `license:` (its name, where that is "other"), or "unknown"."""
    try:
        lines = (folder / "README.md").read_text("utf-8", errors="replace").splitlines()
    except OSError:
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
