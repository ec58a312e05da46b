"""LoRA files: what they change in which layer (Hu et al. 2021; LyCORIS, Yeh et al. 2023).

Read from safetensors: kohya's names and those of the original code, diffusers' and peft's (`lora_names`). A layer's change is

* LoRA: up · down, for Linear and Conv; LoCon in Tucker form: up · middle · down;
* LoHa: (w1a · w1b) ⊙ (w2a · w2b), in Tucker form too,

times alpha / rank. DoRA, which rescales the whole weight, is refused. The change is added to the weight by `merge`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError, RequestError
from ..models.weights import Weights, open_weights
from .lora_names import Place, flat

Real = NDArray[np.float32]
NAMED = 3
"""Tensors that a note names before it says how many more there are."""

_PARTS = re.compile(
    r"(?P<stem>.+?)(?:"
    r"(?P<down>(?:\.lora_down|\.lora_A(?:\.\w+)?|\.lora\.down|\.lora_linear_layer\.down|(?<=_lora)\.down)\.weight)|"
    r"(?P<up>(?:\.lora_up|\.lora_B(?:\.\w+)?|\.lora\.up|\.lora_linear_layer\.up|(?<=_lora)\.up)\.weight)|"
    r"(?P<middle>\.lora_mid\.weight)|(?P<alpha>\.alpha)|"
    r"(?P<dora>\.dora_scale|\.lora_magnitude_vector(?:\.\w+)*)|"
    r"\.hada_(?P<hada>w[12]_[ab]|t[12]))"
)
_LORA, _LOHA = frozenset({"up", "down"}), frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Change:
    """What a file adds to one layer."""

    name: str
    """As the file calls it."""
    factors: Mapping[str, NDArray[Any]]
    """`up` and `down`, perhaps `middle`; or `w1_a`, `w1_b`, `w2_a`, `w2_b`, perhaps `t1` and `t2`."""
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is added: (out, in), (out, in, height, width), or LoHa's (out, everything else)."""
        factors = self.factors
        if "up" in factors:
            kernel = factors["middle" if "middle" in factors else "down"].shape[2:]
            return (factors["up"].shape[0], factors["down"].shape[1], *kernel)
        if "t1" in factors:
            return (factors["w1_a"].shape[1], factors["w1_b"].shape[1], *factors["t1"].shape[2:])
        return (factors["w1_a"].shape[0], factors["w1_b"].shape[1])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be added to a weight of `shape`; trailing ones make no difference."""
        own, other = _without_ones(self.shape), _without_ones(shape)
        return own == other or ("w1_a" in self.factors and own == (other[0], int(np.prod(other[1:]))))

    def delta(self, shape: tuple[int, ...]) -> Real:
        """What is added to a weight of `shape`, in float32, scale included.

        Raises:
            RequestError: NaN or Inf in the file.
        """
        factors = {name: np.asarray(array, np.float32) for name, array in self.factors.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            if "up" in factors:
                found = _product(factors["up"], factors["down"], factors.get("middle"))
            else:
                first = _hadamard_half(factors["w1_a"], factors["w1_b"], factors.get("t1"))
                found = first * _hadamard_half(factors["w2_a"], factors["w2_b"], factors.get("t2"))
            found = found.reshape(shape) * np.float32(self.scale)
        if not np.isfinite(found).all():
            raise RequestError(f"LoRA layer {self.name[:200]}: NaN, Inf or numbers beyond float32: the file is damaged; take another one")
        return found


@dataclass(frozen=True)
class Lora:
    """A LoRA file, opened: its numbers are read when they are needed."""

    path: Path
    sha256: str
    changes: Mapping[Place, Change]
    notes: tuple[str, ...]
    """What was not understood."""


def read(path: Path, places: Mapping[str, Place]) -> Lora:
    """The LoRA in the safetensors file `path`; `places` are the layers of the model by their names in such files.

    Raises:
        BundleError: not a safetensors file, or a damaged one.
        RequestError: no LoRA, one that changes no layer of this model, DoRA, or tensors that do not belong together.
    """
    weights = open_weights(path)
    grouped: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in weights:
        match = _PARTS.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        part = match["hada"] or str(match.lastgroup)
        if part == "dora":
            raise RequestError(f"{path}: {key[:200]} is of a DoRA: expected LoRA, LoCon or LoHa; merge it before the export")
        grouped.setdefault(match["stem"], {})[part] = key
    changes: dict[Place, Change] = {}
    strange: list[str] = []
    for stem, parts in grouped.items():
        place = places.get(flat(stem))
        if place is None:
            strange.append(stem)
        elif place in changes:
            both = f"{stem[:200]} and {changes[place].name[:200]}"
            raise RequestError(f"{path}: {both} are the same layer: the file is damaged; take another one")
        else:
            changes[place] = _change(weights, stem, parts, place)
    if not changes:
        what = f"changes {_list(strange)}: this model has no such layer" if strange else f"is no LoRA: it has {_list(unknown)}"
        raise RequestError(f"{path}: {what}; expected a LoRA, LoCon or LoHa made for this model's architecture")
    notes = [f"{path.name}: layers that this model does not have were left out: {_list(strange)}"] if strange else []
    notes += [f"{path.name}: tensors that are not understood were left out: {_list(unknown)}"] if unknown else []
    return Lora(path, sha256(path), changes, tuple(notes))


def sha256(path: Path) -> str:
    """Of the file `path`, in hex; computed again when its size or time changes."""
    try:
        about = path.stat()
        return _sha256(path, about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error


@lru_cache(64)
def _sha256(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _change(weights: Weights, stem: str, parts: Mapping[str, str], place: Place) -> Change:
    """The change that the tensors `parts` (part → key) make, its shapes checked."""
    factors = {part: weights[key] for part, key in parts.items() if part != "alpha"}
    where = f"{weights.path}: {stem[:200]}"
    kinds = factors.keys()
    if not (_LORA <= kinds <= _LORA | {"middle"} or _LOHA <= kinds <= _LOHA | {"t1", "t2"}) or ("t1" in kinds) != ("t2" in kinds):
        has = ", ".join(sorted(kinds)) or "only alpha"
        raise RequestError(f"{where} has {has}: expected up and down, or LoHa's four; the file is damaged")
    for part, array in factors.items():
        if array.dtype.kind != "f" or array.ndim not in {2, 4} or array.size == 0:
            raise RequestError(f"{where}: {part} is {array.dtype} of shape {array.shape}: expected floats in two or four dimensions")
    rank = _rank(factors)
    if rank is None:
        shapes = ", ".join(f"{part} {array.shape}" for part, array in factors.items())
        raise RequestError(f"{where}: {shapes} do not belong together: the file is damaged; take another one")
    return Change(stem, factors, _scale(weights, parts.get("alpha"), place, rank, where))


def _rank(factors: Mapping[str, NDArray[Any]]) -> int | None:
    """The rank, if the shapes of `factors` agree about it."""
    shapes = {part: array.shape for part, array in factors.items()}
    if "up" in shapes:
        rank, (low, high) = shapes["down"][0], ((shapes["middle"][0], shapes["middle"][1]) if "middle" in shapes else (None, None))
        narrow = shapes["up"][2:] in {(), (1, 1)} and (low is None or (len(shapes["middle"]) == 4 and shapes["down"][2:] in {(), (1, 1)}))
        return rank if narrow and shapes["up"][1] == (rank if low is None else low) and high in {None, rank} else None
    rank = shapes["w1_b"][0]
    if any(len(shapes[part]) != 2 for part in _LOHA):
        return None
    if "t1" in shapes:
        same = shapes["t1"] == shapes["t2"] and shapes["w1_a"] == shapes["w2_a"] and shapes["w1_b"] == shapes["w2_b"]
        return rank if same and len(shapes["t1"]) == 4 and shapes["t1"][:2] == (shapes["w1_a"][0], rank) else None
    fit = shapes["w1_a"][1] == rank and shapes["w2_a"][1] == shapes["w2_b"][0]
    return rank if fit and (shapes["w1_a"][0], shapes["w1_b"][1]) == (shapes["w2_a"][0], shapes["w2_b"][1]) else None


def _scale(weights: Weights, key: str | None, place: Place, rank: int, where: str) -> float:
    """What the change is multiplied by: alpha / rank; 1 where the file says nothing."""
    if key is None:
        return _peft_scale(weights.metadata.get(_METADATA, ""), place, rank)
    alpha = weights[key]
    if alpha.size != 1 or not np.isfinite(alpha).all():
        raise RequestError(f"{where}: alpha is {alpha.dtype} of shape {alpha.shape}: expected one finite number")
    return float(alpha.reshape(())) / rank


def _peft_scale(text: str, place: Place, rank: int) -> float:
    """What peft's configuration, which diffusers writes into the metadata, says: alpha / rank, or alpha / √rank."""
    component = place.component
    try:
        said = msgspec.json.decode(text or "{}", type=dict[str, Any])
        alpha = msgspec.convert(said.get(f"{component}.lora_alpha"), float | None)
        pattern = msgspec.convert(said.get(f"{component}.alpha_pattern") or {}, dict[str, float])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 1.0  # somebody else's metadata
    alpha = next((value for name, value in pattern.items() if f".{place.module}".endswith(f".{name}")), alpha)
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if said.get(f"{component}.use_rslora") is True else rank)


def _product(up: Real, down: Real, middle: Real | None) -> Real:
    wide = up.reshape(up.shape[:2])
    if middle is None:
        return wide @ down.reshape(down.shape[0], -1)
    return np.einsum("oi,ijhw,jc->ochw", wide, middle, down.reshape(down.shape[:2]), optimize=True)


def _hadamard_half(a: Real, b: Real, core: Real | None) -> Real:
    return a @ b if core is None else np.einsum("ijhw,jc,io->ochw", core, b, a, optimize=True)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _list(names: list[str]) -> str:
    first = ", ".join(name[:100] for name in names[:NAMED]) or "no tensors"
    return first if len(names) <= NAMED else f"{first} and {len(names) - NAMED} more"
