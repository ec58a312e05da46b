"""The parts that a pipeline has, by name."""

from __future__ import annotations

from .component import Component
from .source import Source


def build(source: Source, name: str) -> Component:
    """The component `name` of `source`, one of `source.components`.

    Raises:
        BundleError: weights are missing, too many, or of another shape than the config says.
    """
    if name.startswith("text_encoder") or name == "safety_checker":
        from . import towers  # transformers takes seconds to import, and so does diffusers

        return towers.safety_checker(source) if name == "safety_checker" else towers.text_encoder(source, name)
    from . import diffusion

    builders = {
        "unet": diffusion.unet,
        "vae_encoder": diffusion.vae_encoder,
        "vae_decoder": diffusion.vae_decoder,
        "tiny_decoder": diffusion.tiny_decoder,
    }
    return builders[name](source)
