"""Which layer gets which precision, and why: what is known about the layers of a Stable Diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Kind = Literal["int8", "weights", "float"]
"""`int8`: weights and activations; `weights`: 8-bit weights, float arithmetic; `float`: as it was."""

_UNET: tuple[tuple[str, Kind], ...] = (
    (r"^conv_in$|^conv_out$", "float"),  # a few thousand weights; the input's and the output's every bit shows
    (r"^time_embedding\.|^add_embedding\.|\.time_emb_proj$", "weights"),  # one vector a call, all pixels depend on it
    (r"\.attn2\.to_[kv]$", "weights"),  # the first token is 80 times larger than the others and would take the range
)
_RECIPES: Mapping[str, tuple[tuple[str, Kind], ...]] = MappingProxyType(
    {
        "unet": _UNET,
        # One forward pass a picture: weight-only costs no time that anyone sees, and the text decides what is drawn.
        "text_encoder": ((r"", "weights"),),
        "text_encoder_2": ((r"", "weights"),),
        "vae_encoder": ((r"\.conv_in$|\.conv_out$|^quant_conv$", "float"), (r"", "weights")),
        "vae_decoder": ((r"\.conv_in$|\.conv_out$|^post_quant_conv$", "float"), (r"", "weights")),
    }
)


def kind(component: str, layer: str) -> Kind:
    """What the default recipe gives to `layer` (the name of its weight without `.weight`) of `component`."""
    for pattern, wanted in _RECIPES[component]:
        if re.search(pattern, layer):
            return wanted
    return "int8"
