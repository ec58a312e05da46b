"""Which layer gets which precision, and why: what is known about the layers of a Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ..models.manifest import Precision

Kind = Literal["int4", "int8", "weights", "half", "float"]
"""`int4`: 4-bit weights in blocks, for linear layers (what is none gets 8 bit); `int8`: weights and activations; `weights`: 8-bit
weights, unpacked block by block while float activations go through; `half`: 16-bit weights, unpacked when the graph is opened;
`float`: as it was."""
SMALL = 10_000_000
"""A text encoder with fewer weights keeps 16 bits: there is little to win, and every word depends on it."""

_TIME = r"^time_embedding\.|^add_embedding\.|\.time_emb_proj$"
_UNET: tuple[tuple[str, Kind], ...] = (
    (r"^conv_in$|^conv_out$", "float"),  # a few thousand weights; the input's and the output's every bit shows
    (_TIME, "weights"),  # one vector a call, all pixels depend on it
    (r"\.conv_shortcut$", "half"),  # its input and output are the residual stream itself, in every range; a twentieth of the work
    (r"\.attn2\.to_[kv]$", "weights"),  # the first token is 80 times larger than the others and would take the range
)
_RECIPES: Mapping[str, tuple[tuple[str, Kind], ...]] = MappingProxyType(
    {
        "unet": _UNET,
        # One forward pass a picture: weight-only costs no time that anyone sees, and the text decides what is drawn.
        "text_encoder": ((r"", "weights"),),
        "text_encoder_2": ((r"", "weights"),),
        # Once a picture, and only where one is given.
        "vae_encoder": ((r"", "half"),),
        # As much arithmetic as several U-Net calls, nearly all of it in its large convolutions; its noise is seen as such in the picture.
        "vae_decoder": ((r"^decoder\.conv_(in|out)$|\.attentions\.", "half"),),
        "tiny_decoder": ((r"", "half"),),
        # Once a picture, and its answer is a threshold: weight-only, but for the few weights that read the pixels.
        "safety_checker": ((r"patch_embedding$", "half"), (r"", "weights")),
    }
)

PSNR: Mapping[str, float] = MappingProxyType({"vae_decoder": 38.0})
"""How close the pictures that a component gives in few bits have to come to those that it gives in float: dB, where white is 1 and
black -1."""


def on_residual_stream(layer: str) -> bool:
    """Whether `layer` takes and gives the residual stream itself: what changes its resolution (what changes its channels stays `half`)."""
    return re.search(r"samplers\.\d+\.conv$", layer) is not None


def kind(component: str, layer: str, elements: int, precision: Precision = "int8") -> Kind:
    """What the default recipe gives to `layer` (the name of its weight without `.weight`) of `component`, which has
    `elements` weights in all, for `precision` int8 or int4.
    """
    if component.startswith("text_encoder") and elements < SMALL:
        return "half"
    matching: list[Kind] = [wanted for pattern, wanted in _RECIPES[component] if re.search(pattern, layer)]
    found: Kind = matching[0] if matching else "int8"
    if precision == "int4" and found in {"int8", "weights"} and not re.search(_TIME, layer):
        return "int4"
    return found
