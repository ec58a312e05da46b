"""Build a component of a pipeline by name."""

from __future__ import annotations

from ..sources.diffusers_folder import Source
from .traceable import Component


def build(source: Source, name: str) -> Component:
    """The component `name` of `source`, one of `source.components`.

    Raises:
        BundleError: weights are missing, unknown, or of another shape than in the config.
    """
    if name.startswith("text_encoder") or name == "safety_checker":
        from . import clip  # transformers and diffusers take seconds to import

        return clip.safety_checker(source) if name == "safety_checker" else clip.text_encoder(source, name)
    from . import unet_and_vae

    builders = {
        "unet": unet_and_vae.unet,
        "vae_encoder": unet_and_vae.vae_encoder,
        "vae_decoder": unet_and_vae.vae_decoder,
        "tiny_decoder": unet_and_vae.tiny_decoder,
    }
    return builders[name](source)
