"""Apply the LoRAs and textual inversions of a request to a model.

`adapt` returns the U-Net and the text encoders for a request. Without adapters they are the model's own, bit for bit: files are never
modified, and changed weights get a session of their own.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...models.bundle import Bundle
from ...models.errors import RequestError
from ...models.formats.safetensors_file import open_weights
from ..engine.components import Handle, Runner
from ..engine.session_pool import Variant
from ..normalize import MAX_FILES, NormalizedRequest
from ..prompt import parse
from ..prompt.encode import TextEncoder
from ..prompt.tokenizer import Tokenizer
from . import lora, lora_names, merge_weights, textual_inversion
from .lora import Lora

EMBEDDING = "text_model.embeddings.token_embedding"
"""The layer of a text encoder that has a vector for each token."""
ENDING = ".safetensors"


@dataclass(frozen=True)
class Adapted:
    """The components of a model with a request's adapters applied."""

    unet: Handle
    encoders: tuple[TextEncoder, ...]
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields for the image's record: `Used` in plain types."""
    notes: tuple[str, ...] = ()


class Used(msgspec.Struct, frozen=True, omit_defaults=True):
    """An adapter file in the record of an image."""

    name: str
    """The name of the file without its extension."""
    sha256: str
    weight: float = 1.0
    in_prompt: bool = False
    """Whether <lora:…> in the prompt selected it."""


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


def adapt(request: NormalizedRequest, bundle: Bundle, components: Runner, encoders: Sequence[TextEncoder]) -> Adapted:
    """Return the U-Net and `encoders` with the adapters of `request` applied.

    Raises:
        BundleError: a file is missing, damaged or not in safetensors format.
        RequestError: a file is not a LoRA or embedding or is for another architecture, or a name in the prompt was not found.
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
        notes=tuple(
            dict.fromkeys(
                [
                    *(note for found in loras for note in found.lora.notes),
                    *(f"{one.path.name}: its weight is 0, so it has no effect" for one in asked if one.unet == one.text == 0),
                    *(
                        f"<lora:{one.name[:100]}:…>: {', '.join(one.ignored)[:200]} has no effect here"
                        for one in parse.parse(request.prompt).loras
                        if one.ignored
                    ),
                    *words.notes([encoder.tokenizer for encoder in adapted], request.prompt, request.negative),
                ]
            )
        ),
    )


def _loras_in(folder: Path) -> list[Path]:
    """The LoRA files in `folder` and, after them, in its sub-folders."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise RequestError(f"{folder}: cannot be read ({error.strerror}); expected a folder with LoRAs") from error
    walked = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    below = sorted(file for file in itertools.islice(walked, MAX_WALKED) if file.parent != folder)
    return [file for file in (*inside, *below) if file.suffix == ENDING]


MAX_WALKED = 100_000
"""Files in the sub-folders of a folder with LoRAs that are looked at."""


def find_lora(name: str, folders: Sequence[Path]) -> Path:
    """Return the file `name`.safetensors from the first of `folders` that has it, at its top or in a sub-folder.

    Raises:
        RequestError: not found, or a folder cannot be read.
    """
    seen: list[str] = []
    for folder in folders:
        files = _loras_in(folder)
        found = next((file for file in files if name + ENDING in {file.name, file.relative_to(folder).as_posix()}), None)
        if found is not None:
            return found
        seen += [file.stem for file in files]
    if not folders:
        raise RequestError(f"{name[:100]}{ENDING}: no folder to search; set lora_folder (--lora-folder DIR)")
    has = ", ".join(seen[:20]) or "none"
    raise RequestError(f"{name[:100]}{ENDING}: not in {', '.join(map(str, folders))}; found there: {has}")


def recorded(extra: Mapping[str, Any], given: Mapping[str, Any], *, same_prompt: bool) -> dict[str, Any]:
    """Return the adapter fields of the request behind a record with `extra`, except those that `given` overrides.

    Files are searched in the lora_folder of `given` and must match byte for byte.

    Raises:
        RequestError: a file is missing or differs; the message names the one that is needed.
    """
    fields: dict[str, Any] = {"lora_folder": None}  # a record has the files that were used, not their folder
    folders = [given["lora_folder"]] if given.get("lora_folder") else []
    for kind in ("loras", "embeddings"):
        try:
            used = msgspec.convert(extra.get(kind, []), list[Used])
        except msgspec.ValidationError as error:
            raise RequestError(f"the record's {kind} are damaged ({error}); expected a name, a weight and a SHA-256 each") from error
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
    what = f"the image was generated with {used.name[:100]}{ENDING} (SHA-256 {used.sha256[:16]}…)"
    try:
        path = find_lora(used.name, folders)
    except RequestError as error:
        raise RequestError(f"{what}; pass its folder with --lora-folder, or another file with {option}") from error
    digest = lora.sha256(path)
    if digest != used.sha256:
        raise RequestError(f"{what}; {path} is a different file (SHA-256 {digest[:16]}…); to use it anyway, pass it with {option}")
    return path


def _asked(request: NormalizedRequest) -> Iterator[_Asked]:
    """Yield each file once: weights of repeated files are added up.

    Raises:
        RequestError: a name was not found, or there are more than `MAX_FILES` files.
    """
    folders = [request.lora_folder] if request.lora_folder else list(dict.fromkeys(path.parent for path, _ in request.loras))
    paths: dict[str, Path] = {}
    found: dict[tuple[Path, bool], tuple[float, float]] = {}
    for path, weight in request.loras:
        unet, text = found.get((path, False), (0.0, 0.0))
        found[path, False] = (unet + weight, text + weight)
    for named in parse.parse(request.prompt).loras:
        if named.name not in paths:
            paths[named.name] = find_lora(named.name, folders)
        unet, text = found.get((paths[named.name], True), (0.0, 0.0))
        found[paths[named.name], True] = (unet + named.unet_weight, text + named.text_weight)
    if len(found) > MAX_FILES:
        raise RequestError(f"loras: {len(found)} files, expected at most {MAX_FILES} in one request")
    yield from (_Asked(path, unet, text, in_prompt) for (path, in_prompt), (unet, text) in found.items())


def _read(asked: Sequence[_Asked], bundle: Bundle) -> list[_Weighted]:
    """Read each LoRA and check that it fits the model."""
    if not asked:
        return []
    if not bundle.manifest.files:
        raise RequestError(
            f"{bundle.folder}: no manifest; LoRAs need a bundle made by `diffusette export`, which keeps the names of weights"
        )
    modules = {name: merge_weights.modules(graph.initializers) for name, graph in bundle.graphs.items()}
    places = lora_names.places(modules)
    found = [_Weighted(lora.read(one.path, places), one.unet, one.text) for one in asked]
    for one in found:
        for place, change in one.lora.changes.items():
            shape = merge_weights.shape_of(bundle.graphs[place.component].initializers, place.module)
            if not change.fits(shape):
                raise RequestError(
                    f"{one.lora.path}: {change.name[:200]} has shape {list(change.shape)}, but {place.module} in {place.component} has "
                    f"{list(shape)}; the LoRA is for another architecture; use one for {bundle.manifest.family}"
                )
    return found


def _variant(
    bundle: Bundle,
    component: str,
    loras: Sequence[_Weighted],
    rows: Mapping[int, merge_weights.Real] | None = None,
    key: tuple[str, ...] = (),
) -> Variant | None:
    """Return `component` with `loras`, and with `rows`, identified by `key`, in its token embedding; None if nothing changes."""
    touching = [one for one in loras if one.weight(component) != 0 and any(place.component == component for place in one.lora.changes)]
    if not touching and not rows:
        return None

    def merged(present: Container[str]) -> dict[str, merge_weights.Array]:
        graph, initializers = bundle.path(bundle.manifest.components[component].graph), bundle.graphs[component].initializers
        found = merge_weights.rows_replaced(graph, initializers, EMBEDDING, rows) if rows else {}
        for place in dict.fromkeys(place for one in touching for place in one.lora.changes if place.component == component):
            if merge_weights.weight_of(initializers, place.module).name not in present:
                continue
            shape = merge_weights.shape_of(initializers, place.module)
            weight = partial(merge_weights.real, graph, initializers, place.module)
            changes = ((one.weight(component), one.lora.changes[place]) for one in touching if place in one.lora.changes)
            deltas = [(factor, change.delta(shape, weight)) for factor, change in changes]
            found |= merge_weights.added(graph, initializers, place.module, merge_weights.total(deltas))
        return found

    return Variant((*key, *(f"{one.lora.sha256}×{one.weight(component)!r}" for one in touching)), merged)


class _Words:
    """The textual inversions of a request. Their words are the name of the file and, as in diffusers, the key of its only tensor."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.used = [Used(path.stem, lora.sha256(path)) for path in paths]
        self.key = tuple(f"{used.name}={used.sha256}" for used in self.used)
        stems = [path.stem.lower() for path in paths]
        self._aliases: dict[Path, tuple[str, ...]] = {}
        self._widths: dict[Path, int] = {}
        """Of files with one tensor, which do not say what encoder they are for."""
        self._placed = set[Path]()
        for path in dict.fromkeys(paths):
            with open_weights(path) as tensors:
                key = textual_inversion.word_of(tensors)
                if len(tensors) == 1:
                    self._widths[path] = (0, *tensors.entries[next(iter(tensors))].shape)[-1]
            stem = [path.stem] if stems.count(path.stem.lower()) == 1 or key is None else []
            self._aliases[path] = tuple(dict.fromkeys([*([key] if key else []), *stem]))
        every = [(alias.lower(), self._widths.get(path)) for path, aliases in self._aliases.items() for alias in aliases]
        if len(set(every)) < len(every) or len(self._aliases) < len(paths):
            words = ", ".join(alias for aliases in self._aliases.values() for alias in aliases)
            raise RequestError(f"embeddings: {words}; two files have the same name, which is the word in prompts; rename one")

    def notes(self, tokenizers: Sequence[Tokenizer], *prompts: str) -> list[str]:
        """Return a note for each textual inversion that none of `tokenizers`, which know the words, finds in a prompt."""
        groups = [(one, group) for one in tokenizers for prompt in prompts for group in one.encode(prompt).groups]
        return [
            f"embedding {path.name}: no effect, since no prompt contains its word; write {' or '.join(aliases)}"
            for path, aliases in self._aliases.items()
            if not any(group == tokenizer.words.get(aliases[0].lower()) for tokenizer, group in groups)
        ]

    def placed(self, bundle: Bundle, name: str, encoder: TextEncoder) -> tuple[Tokenizer, dict[int, merge_weights.Real]]:
        """Return, for the text encoder `name`, a tokenizer that knows the words, and their rows of the token embedding."""
        number = int(name == "text_encoder_2")
        vectors: dict[str, merge_weights.Real] = {}
        width = merge_weights.embedding_shape(bundle.graphs[name].initializers, EMBEDDING)[1] if self._aliases else 0
        last = name == [*bundle.manifest.tokenizers][-1].replace("tokenizer", "text_encoder")
        for path, aliases in self._aliases.items():
            if self._widths.get(path, width) != width and (not last or path in self._placed):
                continue  # of SDXL's two files, as diffusers' trainer saves them, each goes to the encoder of its width
            self._placed.add(path)
            with open_weights(path) as tensors:
                rows = textual_inversion.read_vectors(tensors, number, str(path))
            if rows is not None:
                vectors[aliases[0]] = rows.copy()
        if not vectors:
            return encoder.tokenizer, {}
        blank = np.zeros(merge_weights.embedding_shape(bundle.graphs[name].initializers, EMBEDDING), np.float32)
        matrix, tokenizer = textual_inversion.place(blank, vectors, encoder.tokenizer)
        words = dict(tokenizer.words)
        for first, *others in self._aliases.values():
            words |= {other.lower(): words[first.lower()] for other in others if first.lower() in words}
        new = {token for word in vectors for token in words[word.lower()]}
        return replace(tokenizer, words=words), {token: matrix[token].copy() for token in sorted(new)}
