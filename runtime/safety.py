"""The safety checker of a bundle: whether a finished picture shows what it was trained to find.

A CLIP image encoder gives each picture an embedding; where its cosine with the embedding of a concept is above that concept's
threshold, the picture is flagged. The rules, rounding included, are those of diffusers' `StableDiffusionSafetyChecker`
(Rando et al. 2022, arXiv:2210.04610, describe them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.bundle import Bundle, size_of
from ..models.errors import BundleError, NumericalError
from ..models.weights import Weights, open_weights
from .components import Components, Handle

Array = NDArray[np.float32]
COMPONENT = "safety_checker"
CONCEPTS = "concepts.safetensors"
"""Lies beside the component's graph."""
CARE = np.float32(0.01)
"""Added to the scores of a picture in which something was found that asks for special care."""


@dataclass(frozen=True)
class View:
    """What the encoder sees of a picture. As it stands here it is CLIP's."""

    size: int = 224
    """Pixels along one side."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """Of red, green and blue from 0 to 1; `std` likewise."""
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Concepts:
    """What is looked for."""

    embeds: Array
    """(concepts, width), each of length 1; `special` likewise."""
    thresholds: Array
    """(concepts,); a cosine above it flags the picture."""
    special: Array
    special_thresholds: Array


@dataclass(frozen=True)
class Filter:
    """The checker of one bundle."""

    session: Handle
    """`clip_input` float32 (batch, 3, size, size) → `image_embeds` float32 (batch, width). Where there are no `concepts`, as in
    the folders of older exporters: `clip_input`, `images` (batch, height, width, 3) → `has_nsfw_concepts`, bool (batch,)."""
    view: View
    concepts: Concepts | None

    def flags(self, image: Image.Image) -> bool:
        """Whether `image` is one that should not be shown.

        Raises:
            NumericalError: NaN or Inf came out: an unchecked picture is never passed on as a checked one.
        """
        feeds = {"clip_input": prepared(image, self.view)}
        if self.concepts is not None:
            return bool(unsafe(self.session.run(feeds)["image_embeds"], self.concepts)[0])
        feeds["images"] = np.asarray(image.convert("RGB"), np.float32)[None] / np.float32(255)
        return bool(self.session.run(feeds)["has_nsfw_concepts"].any())


def open_filter(bundle: Bundle, components: Components) -> Filter | None:
    """The checker of `bundle`; none if it has none.

    Raises:
        BundleError: it has one without its concepts, or with damaged ones.
    """
    if COMPONENT not in components:
        return None
    session = components.get(COMPONENT)
    if "has_nsfw_concepts" in session.outputs and "images" in session.inputs:
        return Filter(session, View(), None)
    return Filter(session, *read_concepts(bundle.path(session.component.graph).parent / CONCEPTS))


def read_concepts(path: Path) -> tuple[View, Concepts]:
    """What the safetensors file `path` says: how a picture is seen, and what is looked for.

    Raises:
        BundleError: missing, damaged, or its tensors and metadata are not what the checker needs.
    """
    size_of(path, COMPONENT)
    with open_weights(path) as weights:
        embeds, thresholds = _pair(weights, "concept_embeds")
        special, special_thresholds = _pair(weights, "special_care_embeds")
        try:
            size = int(json.loads(weights.metadata["size"]))
            mean, std = (tuple(map(float, json.loads(weights.metadata[name]))) for name in ("mean", "std"))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise BundleError(f"{path}: its metadata lacks a readable size, mean or std ({error!r}): export the model again") from error
    if not 1 <= size <= 4096 or len(mean) != 3 or len(std) != 3 or not min(std) > 0 or special.shape[1] != embeds.shape[1]:
        raise BundleError(
            f"{path}: size {size}, mean {mean}, std {std}, embeddings {embeds.shape} and {special.shape}: expected a side in pixels, "
            f"three numbers each, and embeddings of one width: export the model again"
        )
    return View(size, mean, std), Concepts(normalized(embeds), thresholds, normalized(special), special_thresholds)


def prepared(image: Image.Image, view: View) -> Array:
    """What the encoder sees of `image`, (1, 3, size, size): its shorter edge scaled to `size` (bicubic), cut around the middle."""
    size = view.size
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width, height = (longer, size) if image.width > image.height else (size, longer)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.array(view.mean, np.float32)) / np.array(view.std, np.float32)).transpose(2, 0, 1)[None])


def unsafe(image_embeds: NDArray[Any], concepts: Concepts) -> NDArray[np.bool_]:
    """(batch,): which of `image_embeds` (batch, width) are near a concept. Scores count from 0.001, as they are rounded.

    Raises:
        NumericalError: NaN or Inf in `image_embeds`.
    """
    if not np.isfinite(image_embeds).all():
        raise NumericalError("NaN or Inf in the safety checker's embedding: expected finite numbers; export the model again")
    embeds = normalized(image_embeds)
    careful = (np.round(embeds @ concepts.special.T - concepts.special_thresholds, 3) > 0).any(axis=1, keepdims=True)
    scores = embeds @ concepts.embeds.T - concepts.thresholds + np.where(careful, CARE, np.float32(0))
    return np.any(np.round(scores, 3) > 0, axis=1)


def normalized(embeds: NDArray[Any]) -> Array:
    """Each row of `embeds` (n, width) at length 1, in float32; a row of zeros stays one."""
    rows = np.asarray(embeds, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def _pair(weights: Weights, name: str) -> tuple[Array, Array]:
    """Embeddings (n, width) and their n thresholds."""
    try:
        embeds, thresholds = (np.array(weights[key], np.float32) for key in (name, f"{name}_weights"))
    except KeyError as error:
        raise BundleError(f"{weights.path}: has no tensor {error}: export the model again") from error
    if embeds.ndim != 2 or thresholds.shape != embeds.shape[:1] or not (np.isfinite(embeds).all() and np.isfinite(thresholds).all()):
        raise BundleError(
            f"{weights.path}: {name} is {embeds.shape} with thresholds {thresholds.shape}: expected finite (n, width) and (n,): "
            f"export the model again"
        )
    return embeds, thresholds
