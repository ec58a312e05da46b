"""The concept embeddings that a safety checker compares images with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...models.errors import BundleError
from ...models.formats.safetensors_file import save_weights
from ..sources.diffusers_folder import CONCEPTS, Source

FILE = "concepts.safetensors"
_PREPROCESSING: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
)
"""CLIP's defaults, for sources whose feature extractor does not state them."""


def write(source: Source, folder: Path, size: int) -> None:
    """Write `concepts.safetensors` into `folder`: the embeddings that the runtime compares images with.

    float32 tensors `CONCEPTS`; the metadata says, in JSON, how an image becomes the input: its shortest side is made `size`
    pixels (bicubic), the square in the middle is cut out, and a value is (pixel / 255 - `mean`) / `std`.

    Raises:
        BundleError: tensors are missing or do not belong together, or the feature extractor's config is none.
    """
    found = source.weights("safety_checker")
    for values, thresholds in (CONCEPTS[:2], CONCEPTS[2:]):
        shapes = found.shapes.get(values, ()), found.shapes.get(thresholds, ())
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
            raise BundleError(
                f"{source.path}: safety_checker: {values} of shape {shapes[0]} and {thresholds} of shape {shapes[1]}: "
                "expected (concepts, projection) and (concepts,): fetch it again"
            )
    preprocessing: dict[str, Any] = {"size": size}
    for name, usual in _PREPROCESSING.items():
        said = source.configs["feature_extractor"].get(f"image_{name}", list(usual))
        try:
            preprocessing[name] = [float(value) for value in said]
        except (TypeError, ValueError) as error:
            raise BundleError(f"{source.path}: feature_extractor: image_{name} is {said!r}, expected three numbers") from error
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {name: json.dumps(value) for name, value in preprocessing.items()}
    save_weights(folder / FILE, {name: found.read(name) for name in CONCEPTS}, metadata)
