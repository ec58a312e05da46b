"""Parts that not every bundle has: the safety checker's vision tower, and a tiny decoder in place of the autoencoder's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from ..models.errors import BundleError
from ..models.families import Config
from ..models.weights import save_weights
from .component import Component, Port, assembled
from .source import Source

CONCEPTS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
"""What the safety checker compares a picture with: embeddings, and the cosine from which a picture is alike (`…_weights`)."""
CONCEPTS_FILE = "concepts.safetensors"
_PREPROCESSING: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
)
"""What CLIP was trained with, for sources whose feature extractor says nothing."""


class VisionTower(nn.Module):
    """CLIP's picture encoder and the projection to the space where concepts are compared."""

    def __init__(self, model: CLIPVisionModel, projection: nn.Linear) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model, projection

    def forward(self, clip_input: Tensor) -> Tensor:
        """clip_input (batch, 3, size, size), normalised → (batch, projection), not normalised."""
        model = self.vision_model
        patches = model.embeddings.patch_embedding(clip_input).flatten(2).transpose(1, 2)
        first = model.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        x = model.pre_layrnorm(torch.cat([first, patches], dim=1) + model.embeddings.position_embedding.weight)
        for layer in model.encoder.layers:
            x = layer(x, None, is_causal=False)
        return self.visual_projection(model.post_layernorm(x[:, 0]))


def safety_checker(source: Source) -> Component:
    """The part of diffusers' StableDiffusionSafetyChecker that is a network; `write_concepts` writes the rest."""
    whole = source.configs["safety_checker"]
    said = dict(whole.get("vision_config") or {}) | dict(whole.get("vision_config_dict") or {})
    config = CLIPVisionConfig(**{key: value for key, value in said.items() if key not in {"torch_dtype", "dtype", "transformers_version"}})
    setattr(config, "_attn_implementation", "sdpa")  # noqa: B010  # there is no public way to choose it without loading
    width, size = int(whole.get("projection_dim", 512)), int(config.image_size)  # pyright: ignore[reportArgumentType]  # a pair nowhere here
    with torch.device("meta"):
        module = VisionTower(CLIPVisionModel(config), nn.Linear(config.hidden_size, width, bias=False))
    found = source.weights("safety_checker")
    # transformers before 5 has a level more: the model that CLIPVisionModel wraps has the same name.
    names = {key.replace("vision_model.vision_model.", "vision_model."): key for key in found.shapes if key not in CONCEPTS}
    inputs = (Port("clip_input", "float32", ("batch_size", 3, size, size)),)
    outputs = (Port("image_embeds", "float32", ("batch_size", width)),)
    return assembled(source, "safety_checker", module, "", inputs, outputs, found.renamed(names), config.to_dict())


def write_concepts(source: Source, folder: Path, size: int) -> None:
    """Writes into `folder` what the runtime compares the embedding of a picture with: `concepts.safetensors`.

    float32 tensors `CONCEPTS`; the metadata says, in JSON, how a picture becomes the input: its shortest side is made `size`
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
    save_weights(folder / CONCEPTS_FILE, {name: found.read(name) for name in CONCEPTS}, metadata)


class TinyDecoder(nn.Module):
    """A tiny autoencoder's decoder that takes what the large one takes."""

    def __init__(self, model: AutoencoderTiny, factor: float, offset: float) -> None:
        super().__init__()
        self.decoder, self.factor, self.offset = model.decoder, factor, offset

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, latent channels, height, width), unscaled → (batch, 3, height × factor, width × factor) about [-1, 1]."""
        return self.decoder(latent_sample * self.factor + self.offset)


def tiny_decoder(source: Source) -> Component:
    """The decoder of a TAESD (Bohan, https://github.com/madebyollin/taesd) that `tiny.add` has put beside `source`.

    It was trained on latents as the U-Net has them; the graph takes them as the large decoder does, and scales them itself.
    """
    config, vae = source.configs["tiny_decoder"], source.configs["vae"]
    with torch.device("meta"):
        kind: Any = AutoencoderTiny
        model = kind.from_config(dict(config))
    factor = _number(vae, "scaling_factor", 0.18215) / _number(config, "scaling_factor", 1.0)
    offset = _number(config, "shift_factor", 0.0) - _number(vae, "shift_factor", 0.0) * factor
    inputs = (Port("latent_sample", "float32", ("batch_size", int(vae["latent_channels"]), "height", "width")),)
    outputs = (Port("sample", "float32", ("batch_size", 3, "image_height", "image_width")),)
    weights = source.weights("tiny_decoder")
    return assembled(source, "tiny_decoder", TinyDecoder(model, factor, offset), "", inputs, outputs, weights, config)


def _number(config: Config, key: str, usual: float) -> float:
    return float(config.get(key) or usual)
