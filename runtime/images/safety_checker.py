"""The safety checker of a bundle: decide whether a finished image shows one of its concepts.

A CLIP image encoder computes an embedding of the image; if its cosine with the embedding of a concept is above that concept's threshold,
the image is flagged. The rules, including rounding, are those of diffusers' `StableDiffusionSafetyChecker`; Rando et al. 2022
(arXiv:2210.04610) describe them. A flagged image is made black, or a few blots of colour.
"""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.bundle import Bundle, size_of
from ...models.errors import BundleError, NumericalError
from ...models.formats.safetensors_file import Weights, open_weights
from ..engine.components import Handle, Runner

Array = NDArray[np.float32]
COMPONENT = "safety_checker"
Safety = Literal["on", "off", "none"]
"""The checker sees every image, it is turned off, or there is none."""
Hiding = Literal["black", "blur"]
"""What becomes of a flagged image."""
HIDINGS: tuple[Hiding, ...] = ("black", "blur")
CONCEPTS = "concepts.safetensors"
"""The file beside the component's graph."""
CARE = np.float32(0.01)
"""Added to all scores of an image that matches a special-care concept."""
_BLOTS = 8
"""Colours along the longer side of a blurred image."""


def safety_of(components: Container[str], *, checks: bool) -> Safety:
    """Return whether the model of `components` has a checker, and whether it `checks` images."""
    if COMPONENT not in components:
        return "none"
    return "on" if checks else "off"


def hidden(image: Image.Image, how: Hiding) -> Image.Image:
    """Return `image` (RGB) black, or blurred beyond recognition, in its own size.

    A blurred image keeps the mean colours of at most 8 × 8 areas, each at least 8 pixels wide, with smooth transitions. Everything else is
    gone from the pixels, so nobody can sharpen it back.
    """
    if how == "black":
        return Image.new("RGB", image.size)
    shrink = max(max(image.size) / _BLOTS, 8.0)
    few = tuple(max(1, int(side / shrink)) for side in image.size)
    return image.resize((few[0], few[1]), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class View:
    """The preprocessing of an image for the encoder. The defaults are CLIP's."""

    size: int = 224
    """Pixels along one side."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    """The mean of red, green and blue from 0 to 1; `std` is their standard deviation."""
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Concepts:
    """The concepts that the checker flags."""

    embeds: Array
    """(concepts, width), each of length 1, as in `special`."""
    thresholds: Array
    """(concepts,); a cosine above it flags the image."""
    special: Array
    special_thresholds: Array


@dataclass(frozen=True)
class Filter:
    """The checker of one bundle."""

    session: Handle
    """`clip_input` float32 (batch, 3, size, size) → `image_embeds` float32 (batch, width). Without `concepts`, as in
    the folders of older exporters: `clip_input`, `images` (batch, height, width, 3) → `has_nsfw_concepts`, bool (batch,)."""
    view: View
    concepts: Concepts | None

    def flags(self, image: Image.Image) -> bool:
        """Whether `image` should not be shown.

        Raises:
            NumericalError: the checker returned NaN or Inf; an unchecked image never counts as checked.
        """
        feeds = {"clip_input": prepared(image, self.view)}
        if self.concepts is not None:
            return bool(unsafe(self.session.run(feeds)["image_embeds"], self.concepts)[0])
        feeds["images"] = np.asarray(image.convert("RGB"), np.float32)[None] / np.float32(255)
        return bool(self.session.run(feeds)["has_nsfw_concepts"].any())


def open_filter(bundle: Bundle, components: Runner) -> Filter | None:
    """Return the checker of `bundle`; None if the bundle has no checker.

    Raises:
        BundleError: its concepts are missing or damaged.
    """
    if COMPONENT not in components:
        return None
    session = components.get(COMPONENT)
    if "has_nsfw_concepts" in session.outputs and "images" in session.inputs:
        return Filter(session, View(), None)
    return Filter(session, *read_concepts(bundle.path(session.component.graph).parent / CONCEPTS))


def read_concepts(path: Path) -> tuple[View, Concepts]:
    """Read the preprocessing and the concepts from the safetensors file `path`.

    Raises:
        BundleError: missing, damaged, or without the tensors and metadata that the checker needs.
    """
    size_of(path, COMPONENT)
    with open_weights(path) as weights:
        embeds, thresholds = _pair(weights, "concept_embeds")
        special, special_thresholds = _pair(weights, "special_care_embeds")
        try:
            size = int(json.loads(weights.metadata["size"]))
            mean, std = (tuple(map(float, json.loads(weights.metadata[name]))) for name in ("mean", "std"))
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise BundleError(f"{path}: its metadata lacks a readable size, mean or std ({error!r}); export the model again") from error
    if not 1 <= size <= 4096 or len(mean) != 3 or len(std) != 3 or not min(std) > 0 or special.shape[1] != embeds.shape[1]:
        raise BundleError(
            f"{path}: size {size}, mean {mean}, std {std}, embeddings {embeds.shape} and {special.shape}; expected a size in pixels, "
            f"three numbers for mean and std, and embeddings of equal width; export the model again"
        )
    return View(size, mean, std), Concepts(normalized(embeds), thresholds, normalized(special), special_thresholds)


def prepared(image: Image.Image, view: View) -> Array:
    """Preprocess `image` to (1, 3, size, size): scale its shorter side to `size` (bicubic), then crop the centre."""
    size = view.size
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width, height = (longer, size) if image.width > image.height else (size, longer)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.array(view.mean, np.float32)) / np.array(view.std, np.float32)).transpose(2, 0, 1)[None])


def unsafe(image_embeds: NDArray[Any], concepts: Concepts) -> NDArray[np.bool_]:
    """Return which of `image_embeds` (batch, width) are near a concept: (batch,). Scores are rounded, so those below 0.0005 do not count.

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
    """Scale each row of `embeds` (n, width) to length 1, in float32; rows of zeros stay zero."""
    rows = np.asarray(embeds, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def _pair(weights: Weights, name: str) -> tuple[Array, Array]:
    """Read embeddings (n, width) and their n thresholds."""
    try:
        embeds, thresholds = (np.array(weights[key], np.float32) for key in (name, f"{name}_weights"))
    except KeyError as error:
        raise BundleError(f"{weights.path}: no tensor {error}; export the model again") from error
    if embeds.ndim != 2 or thresholds.shape != embeds.shape[:1] or not (np.isfinite(embeds).all() and np.isfinite(thresholds).all()):
        raise BundleError(
            f"{weights.path}: {name} is {embeds.shape} with thresholds {thresholds.shape}; expected finite (n, width) and (n,); "
            f"export the model again"
        )
    return embeds, thresholds
