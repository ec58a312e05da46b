"""What a request adds to the model: LoRAs at their weights, and words learned by textual inversion.

`adapt` turns a request into the components and text encoders to draw it with. Where nothing is added they are the model's own,
bit for bit: the files are never touched, and a session with changed weights is another session.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..models.bundle import Bundle
from ..models.errors import RequestError
from ..models.weights import open_weights
from . import inversion, lora, lora_names, merge, prompts
from .components import Components, Handle, Variant
from .lora import Lora
from .request import Request
from .text import TextEncoder
from .tokenizer import Tokenizer

EMBEDDING = "text_model.embeddings.token_embedding"
"""The layer of a text encoder that holds a vector for each token."""
ENDING = ".safetensors"


@dataclass(frozen=True)
class Adapted:
    """The parts of a model as a request wants them."""

    unet: Handle
    encoders: tuple[TextEncoder, ...]
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What goes into the picture's record, `Used` in plain types."""
    notes: tuple[str, ...] = ()


class Used(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that a picture was drawn with, as its record tells."""

    name: str
    """Of the file, without its ending."""
    sha256: str
    weight: float = 1.0
    in_prompt: bool = False
    """It was asked for by <lora:…>, which stands in the prompt."""


class _Asked(NamedTuple):
    """A LoRA file and its weights in the U-Net and in the text encoders."""

    path: Path
    unet: float
    text: float
    in_prompt: bool


class _Weighted(NamedTuple):
    lora: Lora
    unet: float
    text: float

    def weight(self, component: str) -> float:
        return self.unet if component == "unet" else self.text


def adapt(request: Request, bundle: Bundle, components: Components, encoders: Sequence[TextEncoder]) -> Adapted:
    """The U-Net and `encoders` with what `request` adds to them.

    Raises:
        BundleError: a file is missing, damaged or no safetensors file.
        RequestError: a file is no LoRA or embedding, or was made for another architecture; or a name is found nowhere.
    """
    asked = list(_asked(request))
    unet = components.get("unet")
    if not asked and not request.embeddings:
        return Adapted(unet, tuple(encoders))
    loras = _read(asked, bundle)
    words = _Words(request.embeddings)
    adapted: list[TextEncoder] = []
    for name, encoder in zip((name.replace("tokenizer", "text_encoder") for name in bundle.manifest.tokenizers), encoders, strict=True):
        tokenizer, rows = words.placed(bundle, name, encoder)
        variant = _variant(bundle, name, loras, rows, words.key if rows else ())
        adapted.append(replace(encoder, session=components.get(name, variant), tokenizer=tokenizer))
    used = [Used(one.path.stem, found.lora.sha256, one.unet, one.in_prompt) for one, found in zip(asked, loras, strict=True)]
    record = {"loras": used, "embeddings": words.used}
    return Adapted(
        unet=components.get("unet", _variant(bundle, "unet", loras)),
        encoders=tuple(adapted),
        record={name: msgspec.to_builtins(files) for name, files in record.items() if files},
        notes=tuple(dict.fromkeys(note for found in loras for note in found.lora.notes)),
    )


def find(name: str, folders: Sequence[Path]) -> Path:
    """The file `name`.safetensors in the first of `folders` that has it.

    Raises:
        RequestError: none has it, or there is no folder.
    """
    seen: list[str] = []
    for folder in folders:
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            raise RequestError(f"{folder}: cannot be read ({error.strerror}): expected a folder with LoRAs") from error
        found = next((file for file in files if file.name == name + ENDING), None)
        if found is not None:
            return found
        seen += [file.stem for file in files if file.suffix == ENDING]
    if not folders:
        raise RequestError(f"{name[:100]}{ENDING}: no folder to look for it in: give one with lora_folder (--lora-folder DIR)")
    has = ", ".join(seen[:20]) or "none"
    raise RequestError(f"{name[:100]}{ENDING}: not in {', '.join(map(str, folders))}: expected one of those there: {has}")


def recorded(extra: Mapping[str, Any], given: Mapping[str, Any], *, same_prompt: bool) -> dict[str, Any]:
    """The fields about adapters of the request that a record with `extra` is of, where `given` has not its own.

    The files are looked for in `given`'s lora_folder, and have to be the same to the byte.

    Raises:
        RequestError: a file is not there or another one; the message says which is needed.
    """
    fields: dict[str, Any] = {"lora_folder": None}  # a record says what was used, never where to look
    folders = [given["lora_folder"]] if given.get("lora_folder") else []
    for kind in ("loras", "embeddings"):
        try:
            used = msgspec.convert(extra.get(kind, []), list[Used])
        except msgspec.ValidationError as error:
            raise RequestError(f"the record's {kind} are damaged ({error}): expected a name, a weight and a SHA-256 each") from error
        if kind in given:
            continue
        found = [(_same(one, kind, folders), one) for one in used if same_prompt or not one.in_prompt]
        if kind == "loras":
            fields[kind] = tuple((path, one.weight) for path, one in found if not one.in_prompt)
        else:
            fields[kind] = tuple(path for path, _ in found)
    return fields


def _same(used: Used, kind: str, folders: Sequence[Path]) -> Path:
    option = "--lora FILE[:WEIGHT]" if kind == "loras" else "--embedding FILE"
    what = f"the picture was drawn with {used.name[:100]}{ENDING} (SHA-256 {used.sha256[:16]}…)"
    try:
        path = find(used.name, folders)
    except RequestError as error:
        raise RequestError(f"{what}: give the folder that has it with --lora-folder, or another one with {option}") from error
    digest = lora.sha256(path)
    if digest != used.sha256:
        raise RequestError(f"{what}: {path} is another file (SHA-256 {digest[:16]}…); to draw with it all the same, give it with {option}")
    return path


def _asked(request: Request) -> Iterator[_Asked]:
    for path, weight in request.loras:
        yield _Asked(path, weight, weight, in_prompt=False)
    folders = [request.lora_folder] if request.lora_folder else list(dict.fromkeys(path.parent for path, _ in request.loras))
    for named in prompts.parse(request.prompt).loras:
        yield _Asked(find(named.name, folders), named.unet_weight, named.text_weight, in_prompt=True)


def _read(asked: Sequence[_Asked], bundle: Bundle) -> list[_Weighted]:
    """Each LoRA, found to fit."""
    if not asked:
        return []
    if not bundle.manifest.files:
        raise RequestError(
            f"{bundle.folder}: has no manifest, and LoRAs need a bundle made by `diffusette export`, which keeps the names of weights"
        )
    modules = {name: merge.modules(graph.initializers) for name, graph in bundle.graphs.items()}
    places = lora_names.places(modules)
    found = [_Weighted(lora.read(one.path, places), one.unet, one.text) for one in asked]
    for one in found:
        for place, change in one.lora.changes.items():
            shape = merge.shape_of(bundle.graphs[place.component].initializers, place.module)
            if not change.fits(shape):
                raise RequestError(
                    f"{one.lora.path}: {change.name[:200]} is for a weight of {list(change.shape)}, but {place.component}'s {place.module} "
                    f"is {list(shape)}: the LoRA was made for another architecture; take one for {bundle.manifest.family}"
                )
    return found


def _variant(
    bundle: Bundle, component: str, loras: Sequence[_Weighted], rows: Mapping[int, merge.Real] | None = None, key: tuple[str, ...] = ()
) -> Variant | None:
    """`component` with `loras`, and with `rows` in its token embedding, which `key` tells from others; None where nothing changes."""
    touching = [one for one in loras if one.weight(component) != 0 and any(place.component == component for place in one.lora.changes)]
    if not touching and not rows:
        return None

    def merged(there: Container[str]) -> dict[str, merge.Array]:
        graph, initializers = bundle.path(bundle.manifest.components[component].graph), bundle.graphs[component].initializers
        found = merge.rows_replaced(graph, initializers, EMBEDDING, rows) if rows else {}
        for place in dict.fromkeys(place for one in touching for place in one.lora.changes if place.component == component):
            if merge.weight_of(initializers, place.module).name not in there:
                continue
            shape = merge.shape_of(initializers, place.module)
            deltas = [(one.weight(component), one.lora.changes[place].delta(shape)) for one in touching if place in one.lora.changes]
            found |= merge.added(graph, initializers, place.module, merge.total(deltas))
        return found

    return Variant((*key, *(f"{one.lora.sha256}×{one.weight(component)!r}" for one in touching)), merged)


class _Words:
    """The embeddings of a request: files whose names are the words."""

    def __init__(self, paths: Sequence[Path]) -> None:
        words = [path.stem.lower() for path in paths]
        if len(set(words)) < len(words):
            raise RequestError(f"embeddings: {', '.join(words)}: a word twice; expected files with names of their own, which are the words")
        self.used = [Used(path.stem, lora.sha256(path)) for path in paths]
        self.key = tuple(f"{used.name}={used.sha256}" for used in self.used)
        self._paths = paths

    def placed(self, bundle: Bundle, name: str, encoder: TextEncoder) -> tuple[Tokenizer, dict[int, merge.Real]]:
        """For the text encoder `name`: the tokenizer that knows the words, and the rows of the token embedding that they stand for."""
        number = int(name == "text_encoder_2")
        vectors: dict[str, merge.Real] = {}
        for path in self._paths:
            with open_weights(path) as tensors:
                rows = inversion.read_vectors(tensors, number, str(path))
            if rows is not None:
                vectors[path.stem] = rows.copy()
        if not vectors:
            return encoder.tokenizer, {}
        blank = np.zeros(merge.embedding_shape(bundle.graphs[name].initializers, EMBEDDING), np.float32)
        matrix, tokenizer = inversion.place(blank, vectors, encoder.tokenizer)
        return tokenizer, {token: matrix[token].copy() for ids in tokenizer.words.values() for token in ids}
