"""The phases of an image, told by the component of the model that runs."""

from __future__ import annotations

from typing import Literal

_LATE = frozenset({"vae_decoder", "tiny_decoder", "safety_checker"})


def phase_of(component: str) -> Literal["encoding", "denoising", "decoding"]:
    """The phase in which a component of a model runs."""
    return "denoising" if component == "unet" else "decoding" if component in _LATE else "encoding"
