"""The models that the server offers: bundles, and folders of LoRAs and embeddings, known by name alone."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from ...models.bundle import DEMO, Bundle, open_bundle
from ...models.families import FAMILIES, Family
from ...models.manifest import Manifest, fingerprint
from ...runtime.images import image_io
from ...runtime.images.hires import UPSCALERS
from ...runtime.images.safety_checker import Safety, safety_of
from ...runtime.names import key_of
from ...runtime.prompt import chunking, parse
from ...runtime.prompt.tokenizer import Tokenizer, open_tokenizer
from ...runtime.resolve import TINY_DECODER
from ...runtime.sampling.samplers import SAMPLERS
from ...runtime.sampling.schedules import SCHEDULES
from .records import Refused, refusal_of

ENDING = ".safetensors"
_ABSOLUTE = re.compile(r"(?<![^\s'\"(])(?:[A-Za-z]:)?[/\\](?:[^/\\\s:'\"]+[/\\])+")
"""The folders of an absolute path."""
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
"""Aspect ratios of the sizes that a model suggests."""
SPEEDS = ("exact", "balanced", "fast")


class Model(msgspec.Struct, frozen=True):
    """A model as the API shows it."""

    id: str
    name: str
    family: str
    title: str
    licence: str
    size_bytes: int
    task: str
    resident: bool
    safety: Safety
    """Whether a safety checker sees every image ("on"), is turned off ("off"), or does not exist ("none")."""


class TokenCount(msgspec.Struct, frozen=True):
    """How a prompt fills the text encoder."""

    tokens: int
    chunks: int
    chunk: int
    """Tokens that fit into a chunk."""
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A bundle that jobs may name."""

    id: str
    bundle: Bundle
    hash: str
    """SHA-256 of the manifest, in hex."""
    checks: bool = True
    """Whether the safety checker, if the bundle has one, sees the images."""

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def name(self) -> str:
        """The name of the weights."""
        return self.manifest.source.name

    @property
    def title(self) -> str:
        """The name as A1111 writes it, with the hash."""
        return f"{self.name} [{self.hash[:10]}]"

    @property
    def family(self) -> Family:
        """Architecture and task."""
        return FAMILIES[self.manifest.family]

    @property
    def needs_init(self) -> bool:
        """Whether the model only changes images."""
        return self.family.task in {"inpaint", "instruct"}

    @property
    def safety(self) -> Safety:
        """Whether images are checked."""
        return safety_of(self.manifest.components, checks=self.checks)

    def fact(self, resident: str | None) -> Model:
        """The model as the API shows it."""
        size = sum(file.size for file in self.manifest.files.values())
        source, is_open = self.manifest.source, resident == self.id
        return Model(self.id, source.name, self.manifest.family, self.title, source.licence, size, self.family.task, is_open, self.safety)

    def details(self, resident: str | None, loras: Sequence[str], embeddings: Sequence[str]) -> dict[str, Any]:
        """What a page needs to offer every choice of this model."""
        manifest = self.manifest
        defaults = msgspec.to_builtins(manifest.defaults)
        editable = "vae_encoder" in manifest.components
        schedules = [one.name for one in SCHEDULES.values() if one.name != "ays_sdxl"]
        return {
            **msgspec.to_builtins(self.fact(resident)),
            "defaults": {**defaults, "speed": SPEEDS[0]},
            "multiple": manifest.latent.downscale,
            "samplers": [{"name": one.name, "title": one.label, "options": list(_options(one.options))} for one in SAMPLERS.values()],
            "schedules": schedules,
            "speeds": list(SPEEDS),
            "decoders": ["vae", *(["tiny"] if TINY_DECODER in manifest.components else [])],
            "upscalers": [{"name": one.name, "title": one.label} for one in UPSCALERS.values()],
            "loras": [{"name": name} for name in loras],
            "embeddings": [{"name": name} for name in embeddings],
            "image_to_image": editable,
            "inpaint": editable,
            "needs_init": self.needs_init,
            "chunk": next(iter(manifest.tokenizers.values())).length,
            "sizes": self.sizes(),
        }

    def sizes(self) -> list[tuple[int, int]]:
        """Sizes of about the model's number of pixels, one of each shape."""
        defaults = self.manifest.defaults
        area = defaults.width * defaults.height
        grain = self.manifest.latent.downscale * (8 if area >= 512 * 512 else 1)
        own = (defaults.width, defaults.height)
        found = [image_io.snap(math.sqrt(area * wide / high), math.sqrt(area * high / wide), grain) for wide, high in SHAPES]
        return list(dict.fromkeys([own, *found]))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first text encoder."""
        folder, description = next((one.folder, one) for one in self.manifest.tokenizers.values())
        return open_tokenizer(self.bundle.path(folder), description)

    def count(self, text: str) -> TokenCount:
        """The tokens of a prompt."""
        room = self.tokenizer.length - 2
        try:
            prompt = parse.parse(text)
            sections = [section for part in prompt.parts for section in parse.at_step(part.nodes, 0, 1)]
            chunks, notes = chunking.chunk(tuple(sections), self.tokenizer)
        except Exception as error:  # noqa: BLE001  # a counter tells, and never fails
            return TokenCount(0, 0, room, (refusal_of(error).message,))
        groups = [group for section in sections for fragment, _ in section for group in self.tokenizer.encode(fragment).groups]
        return TokenCount(sum(map(len, groups)), len(chunks), room, (*prompt.notes, *notes))


class Catalog:
    """Every model, LoRA and embedding that requests may name."""

    def __init__(self, folders: Sequence[Path], loras: Path, embeddings: Path, *, checks: bool = True) -> None:
        self.loras_folder = loras
        self.embeddings_folder = embeddings
        self.offers: dict[str, Offer] = {}
        for folder in dict.fromkeys(folders or [DEMO]):
            bundle = open_bundle(folder)
            digest = fingerprint(bundle.manifest)
            slug = re.sub(r"[^a-z0-9]+", "-", bundle.manifest.source.name.casefold()).strip("-")[:40] or "model"
            offer = Offer(f"{slug}-{digest[:8]}", bundle, digest, checks)
            self.offers.setdefault(offer.id, offer)
        self.hidden = {offer.bundle.folder: offer.id for offer in self.offers.values()} | {loras: "loras", embeddings: "embeddings"}
        """Folder → what clients read in its place."""

    def unchecked(self) -> list[str]:
        """A sentence for each model whose images are not checked."""
        why = {"none": "it has no safety checker", "off": "its safety checker is turned off"}
        return [f"images of {one.id} are not checked: {why[one.safety]}" for one in self.offers.values() if one.safety in why]

    def hide(self, text: str) -> str:
        """`text` with names in the place of the server's folders, and of whatever else looks like an absolute path its last name."""
        for folder in sorted(self.hidden, key=lambda one: -len(str(one))):
            for path in {str(folder), str(folder.absolute()), str(folder.resolve())}:
                text = text.replace(path + os.sep, f"{self.hidden[folder]}/") if len(path) > 1 else text
                text = text.replace(path, self.hidden[folder]) if len(path) > 1 else text
        return _ABSOLUTE.sub("", text)

    def refusal_of(self, error: Exception) -> Refused:
        """`error` in the words of the API, without paths of this machine."""
        refused = refusal_of(error)
        return Refused(refused.code, self.hide(refused.message), refused.field, refused.status) if refused is not error else refused

    @property
    def first(self) -> Offer:
        """The model of requests that name none."""
        return next(iter(self.offers.values()))

    def find(self, name: str | None) -> Offer:
        """The model of that id, name, title or hash; the first one for None.

        Raises:
            Refused: there is none.
        """
        if not name:
            return self.first
        key = key_of(name)
        for offer in self.offers.values():
            if name in {offer.id, offer.hash, offer.hash[:10]} or key in {key_of(offer.name), key_of(offer.title)}:
                return offer
        known = ", ".join(self.offers)
        raise Refused("not_found", f"model: {name[:100]!r} is not here; choose one of {known}", "model")

    def loras(self) -> list[str]:
        """Names of the LoRAs in the folder."""
        return _names(self.loras_folder)

    def embeddings(self) -> list[str]:
        """Names of the embeddings in the folder."""
        return _names(self.embeddings_folder)

    def lora(self, name: object) -> Path:
        """The file of a LoRA; only names that `loras` lists.

        Raises:
            Refused: there is none of that name.
        """
        return _file(self.loras_folder, name, self.loras(), "loras")

    def embedding(self, name: object) -> Path:
        """The file of an embedding; only names that `embeddings` lists.

        Raises:
            Refused: there is none of that name.
        """
        return _file(self.embeddings_folder, name, self.embeddings(), "embeddings")


def _options(names: Sequence[str]) -> Sequence[str]:
    return [name for name in names if name != "noise"]  # the model's, not the user's


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.stem for path in folder.iterdir() if path.suffix == ENDING and path.is_file())
    except OSError:
        return []


def _file(folder: Path, name: object, names: Sequence[str], field: str) -> Path:
    if name not in names:
        has = ", ".join(names[:20]) or "none"
        raise Refused("invalid_request", f"{field}: {str(name)[:100]!r} is not in the server's folder; it has: {has}", field)
    return folder / f"{name}{ENDING}"
