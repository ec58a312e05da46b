"""The recipe: the default precision of each layer, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ...models.manifest import Precision

Kind = Literal["int4", "int8", "weights", "half", "float"]
"""Precision of a layer:

* `int4`: int4 weights in blocks, for linear layers; others get int8 arithmetic or weights
* `int8`: int8 weights and activations
* `weights`: int8 weights, float arithmetic
* `half`: float16 weights, converted to float32 when the graph is opened
* `float`: float32
"""
SMALL = 10_000_000
"""A text encoder with fewer weights keeps float16: int8 would save little, and every word depends on it."""

_TIME = r"^time_embedding\.|^add_embedding\.|\.time_emb_proj$"
_UNET: tuple[tuple[str, Kind], ...] = (
    (r"^conv_in$|^conv_out$", "float"),  # a few thousand weights; every rounding error of input and output is visible
    (_TIME, "weights"),  # one vector per call, and all pixels depend on it
    (r"\.conv_shortcut$", "half"),  # reads and writes the residual stream, whose channels differ in range; 5 % of the work
    (r"\.attn2\.to_[kv]$", "weights"),  # the first token is 80 times larger than the others and would dominate the range
)
_RECIPES: Mapping[str, tuple[tuple[str, Kind], ...]] = MappingProxyType(
    {
        "unet": _UNET,
        # One forward pass per image: int8 weights alone cost no noticeable time, and the text decides what is generated.
        "text_encoder": ((r"", "weights"),),
        "text_encoder_2": ((r"", "weights"),),
        # Once per image, and only for image to image.
        "vae_encoder": ((r"", "half"),),
        # As much arithmetic as several U-Net calls, nearly all of it in large convolutions; rounding errors appear as noise in the image.
        "vae_decoder": ((r"^decoder\.conv_(in|out)$|\.attentions\.", "half"),),
        "tiny_decoder": ((r"", "half"),),
        # Once per image, and only a threshold depends on it: int8 weights, except the few that read the pixels.
        "safety_checker": ((r"patch_embedding$", "half"), (r"", "weights")),
    }
)

PSNR: Mapping[str, float] = MappingProxyType({"vae_decoder": 38.0})
"""Minimum PSNR in dB of a component's images against those of its float graph, where white is 1 and black is -1."""


def on_residual_stream(layer: str) -> bool:
    """Whether `layer` changes the resolution of the residual stream (layers that change its channels stay `half`)."""
    return re.search(r"samplers\.\d+\.conv$", layer) is not None


def kind(component: str, layer: str, elements: int, precision: Precision = "int8") -> Kind:
    """Return the default precision of `layer` (its weight's name without `.weight`) for `precision` int8 or int4.

    `elements` is the number of weights in `component`.
    """
    if component.startswith("text_encoder") and elements < SMALL:
        return "half"
    matching: list[Kind] = [choice for pattern, choice in _RECIPES[component] if re.search(pattern, layer)]
    chosen: Kind = matching[0] if matching else "int8"
    if precision == "int4" and chosen in {"int8", "weights"} and not re.search(_TIME, layer):
        return "int4"
    return chosen
