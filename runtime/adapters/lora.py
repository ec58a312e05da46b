"""Read LoRA, LoCon, LoHa and LoKr files in safetensors format.

Layers may have the names of kohya, ComfyUI, the original code, diffusers or peft (`lora_names`). The change of a layer is computed from its
factors (`low_rank`), times alpha / rank; `merge_weights` adds it to the weight. DoRA, which rescales the whole weight, is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ...models.formats.safetensors_file import Weights, open_weights
from ...models.formats.small_file import open_regular
from .lora_names import Place, flat, foreign_kind
from .low_rank import KINDS, Real, decomposed, shapes_of

NAMED = 3
"""The most tensors that a note names; it counts the rest."""

_PARTS = re.compile(
    r"(?P<stem>.+?)(?:"
    r"(?P<down>(?:\.lora_down|\.lora_A(?:\.\w+)?|\.lora\.down|\.lora_linear_layer\.down|(?<=_lora)\.down)\.weight)|"
    r"(?P<up>(?:\.lora_up|\.lora_B(?:\.\w+)?|\.lora\.up|\.lora_linear_layer\.up|(?<=_lora)\.up)\.weight)|"
    r"(?P<middle>\.lora_mid\.weight)|(?P<alpha>\.alpha)|"
    r"(?P<dora>\.dora_scale|\.lora_magnitude_vector(?:\.\w+)*)|"
    r"\.hada_(?P<loha>w[12]_[ab]|t[12])|\.lokr_(?P<lokr>w[12](?:_[ab])?|t2))"
)
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Change:
    """The change of one layer in a file."""

    name: str
    """The layer's name in the file."""
    kind: str
    """One of `low_rank.KINDS`."""
    factors: Mapping[str, NDArray[Any]]
    """By their names in that kind, such as `up` and `down`."""
    scale: float
    magnitude: NDArray[Any] | None = None
    """Of a DoRA: the norm of each output, (out, 1, …), or of each input, (1, in, …), of the changed weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change: (out, in), (out, in, height, width), or (out, the rest flattened)."""
        return KINDS[self.kind].shape(shapes_of(self.factors))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be added to a weight of `shape`; trailing dimensions of 1 are ignored."""
        own, other = _without_ones(self.shape), _without_ones(shape)
        return own == other or (self.kind != "lora" and own == (other[0], int(np.prod(other[1:]))))

    def is_zero(self) -> bool:
        """Whether it changes nothing: its scale or one of its factors is zero."""
        return self.magnitude is None and (self.scale == 0 or not all(array.any() for array in self.factors.values()))

    def delta(self, shape: tuple[int, ...], weight: Callable[[], Real] | None = None) -> Real:
        """Return the change for a weight of `shape`, in float32, with the scale applied; a DoRA needs the `weight` itself.

        Raises:
            RequestError: the change contains NaN or Inf.
        """
        factors = {name: np.asarray(array, np.float32) for name, array in self.factors.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            found = KINDS[self.kind].value(factors).reshape(shape) * np.float32(self.scale)
            if self.magnitude is not None and weight is not None:
                found = decomposed(weight().reshape(shape), found, np.asarray(self.magnitude, np.float32))
        if not np.isfinite(found).all():
            raise RequestError(f"LoRA layer {self.name[:200]}: NaN, Inf or numbers beyond float32; the file is damaged; use another one")
        return found


@dataclass(frozen=True)
class Lora:
    """An open LoRA file; its values are read on use."""

    path: Path
    sha256: str
    changes: Mapping[Place, Change]
    notes: tuple[str, ...]
    """Layers and tensors that were left out, described for the user."""


def read(path: Path, places: Mapping[str, Place]) -> Lora:
    """Read the LoRA in the safetensors file `path`; `places` maps layer names in LoRA files to the model's layers.

    Raises:
        BundleError: not a safetensors file, or damaged.
        RequestError: not a LoRA, no layer of this model, or inconsistent tensors.
    """
    weights = open_weights(path)
    grouped: dict[str, dict[tuple[str, str], str]] = {}
    unknown: list[str] = []
    for key in weights:
        match = _PARTS.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        part = match.lastgroup or ""
        factor = (part, match[part]) if part in KINDS else ("" if part in {"alpha", "dora"} else "lora", part)
        grouped.setdefault(match["stem"], {})[factor] = key
    changes: dict[Place, Change] = {}
    strange: list[str] = []
    for stem, parts in grouped.items():
        place = places.get(flat(stem))
        if place is None:
            strange.append(stem)
        elif place in changes:
            both = f"{stem[:200]} and {changes[place].name[:200]}"
            raise RequestError(f"{path}: {both} are the same layer; the file is damaged; use another one")
        else:
            changes[place] = _change(weights, stem, parts, place)
    if not changes:
        if kind := foreign_kind(weights):
            raise RequestError(f"{path}: {kind}; expected a LoRA, LoCon, LoHa or LoKr for this model's architecture")
        what = f"none of its layers is in this model ({_list(strange)})" if strange else f"not a LoRA (it has {_list(unknown)})"
        raise RequestError(f"{path}: {what}; expected a LoRA, LoCon, LoHa or LoKr for this model's architecture")
    notes = [f"{path.name}: left out layers that this model does not have: {_list(strange)}"] if strange else []
    notes += [f"{path.name}: left out unknown tensors: {_list(unknown)}"] if unknown else []
    if all(change.is_zero() for change in changes.values()):
        notes.append(f"{path.name}: all of its layers are zero, so it has no effect")
    return Lora(path, sha256(path), changes, tuple(notes))


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file `path` in hex; cached until its number, size or times change."""
    with open_regular(path, "a safetensors file") as file:
        about = os.fstat(file.fileno())
        return _sha256(path, (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))


@lru_cache(64)
def _sha256(path: Path, _identity: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _change(weights: Weights, stem: str, parts: Mapping[tuple[str, str], str], place: Place) -> Change:
    """Return the change defined by the tensors `parts` ((kind, factor) → key), with its shapes checked."""
    where = f"{weights.path}: {stem[:200]}"
    kinds = {kind for kind, _ in parts if kind}
    factors = {name: weights[key] for (kind, name), key in parts.items() if kind}
    shapes = shapes_of(factors)
    if len(kinds) != 1 or not KINDS[min(kinds)].complete(shapes):
        has, expected = ", ".join(sorted(factors)) or "only alpha", ", or ".join(kind.expected for kind in KINDS.values())
        raise RequestError(f"{where} has {has}; expected {expected}; the file is damaged; use another one")
    for name, array in factors.items():
        if array.dtype.kind != "f" or array.ndim not in {2, 4} or array.size == 0:
            raise RequestError(
                f"{where}: {name} is {array.dtype} of shape {array.shape}; expected floats in two or four dimensions; use another file"
            )
    (kind,) = kinds
    rank = KINDS[kind].rank(shapes)
    if rank is None:
        has = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RequestError(f"{where}: {has} do not match; the file is damaged; use another one")
    scale = _scale(weights, parts.get(("", "alpha")), place, rank, where) if rank else 1.0
    magnitude = weights[parts["", "dora"]] if ("", "dora") in parts else None
    if magnitude is not None and not _is_magnitude(magnitude, KINDS[kind].shape(shapes)):
        raise RequestError(f"{where}: dora_scale is {magnitude.dtype} of shape {magnitude.shape}; expected one float per output or input")
    return Change(stem, kind, factors, scale, magnitude)


def _is_magnitude(array: NDArray[Any], shape: tuple[int, ...]) -> bool:
    sides = {shape[0], shape[1]} if array.ndim > 1 else {shape[0]}
    return array.dtype.kind == "f" and array.size in sides and max(array.shape, default=0) == array.size


def _scale(weights: Weights, key: str | None, place: Place, rank: int, where: str) -> float:
    """Return the factor of the change: alpha / rank, or 1 if the file has no alpha."""
    if key is None:
        return _peft_scale(weights.metadata.get(_METADATA, ""), place, rank)
    alpha = weights[key]
    if alpha.size != 1 or not np.isfinite(alpha).all():
        raise RequestError(f"{where}: alpha is {alpha.dtype} of shape {alpha.shape}; expected one finite number; use another file")
    return float(alpha.reshape(())) / rank


def _peft_scale(text: str, place: Place, rank: int) -> float:
    """Return the factor from peft's configuration, which diffusers writes into the metadata: alpha / rank, or alpha / √rank."""
    component = place.component
    try:
        config = msgspec.json.decode(text or "{}", type=dict[str, Any])
        alpha = msgspec.convert(config.get(f"{component}.lora_alpha"), float | None)
        pattern = msgspec.convert(config.get(f"{component}.alpha_pattern") or {}, dict[str, float])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 1.0  # metadata of another program
    alpha = next((value for name, value in pattern.items() if f".{place.module}".endswith(f".{name}")), alpha)
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if config.get(f"{component}.use_rslora") is True else rank)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _list(names: list[str]) -> str:
    first = ", ".join(name[:100] for name in names[:NAMED]) or "no tensors"
    return first if len(names) <= NAMED else f"{first} and {len(names) - NAMED} more"
