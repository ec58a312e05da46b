"""CLIP's text encoders and the safety checker's image encoder as traceable modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from ..sources.diffusers_folder import CONCEPTS, Source, text_names
from .traceable import Component, Port, assembled, foreign_errors

SKIPPED_LAYERS = 11
"""The largest CLIP skip, in layers before the last, as in other Stable Diffusion interfaces."""


class TextEncoder(nn.Module):
    """A CLIP text encoder that also returns the hidden states for CLIP skip and SDXL."""

    def __init__(self, model: CLIPTextModel, projection: nn.Linear | None, *, raw: bool) -> None:
        super().__init__()
        self.text_model = model
        if projection is not None:
            self.text_projection = projection
        self.raw = raw

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """input_ids (batch, tokens) int64 → last hidden state, pooled (with a projection: projected, and first), earlier states."""
        model = self.text_model
        positions = torch.arange(input_ids.shape[1])
        x = model.embeddings.token_embedding(input_ids) + model.embeddings.position_embedding(positions)
        states: list[Tensor] = []
        for layer in model.encoder.layers:
            states.append(x)
            x = layer(x, None, is_causal=True)
        states.append(x)
        last = model.final_layer_norm(x)
        # Configs from before transformers 4.30 have 2 for every vocabulary; the end token is then the largest id.
        token: Any = model.config.eos_token_id
        end = input_ids if token == 2 else torch.eq(input_ids, int(token))
        position: Tensor = end.type(torch.int32).argmax(dim=-1)[:, None, None].expand(-1, 1, last.shape[2])
        pooled = torch.gather(last, 1, position)[:, 0]
        if hasattr(self, "text_projection"):
            pooled = self.text_projection(pooled)
        kept = [states[k] if self.raw else model.final_layer_norm(states[k]) for k in hidden_states(len(states) - 1, whole=self.raw)]
        # Pipelines of optimum and diffusers take the first output of an encoder with a projection as the pooled text.
        return (pooled, last, *kept) if hasattr(self, "text_projection") else (last, pooled, *kept)


def hidden_states(layers: int, *, whole: bool = False) -> range:
    """Indices of the hidden states returned after the last normed one: layers - 1, layers - 2, …

    One for each CLIP skip, or, with `whole`, all of them from `layers` to the embeddings (0), as optimum's SDXL pipelines expect.
    """
    return range(layers, -1, -1) if whole else range(layers - 1, max(0, layers - 1 - SKIPPED_LAYERS), -1)


_UNUSED = frozenset({"torch_dtype", "dtype", "transformers_version"})
"""Keys of configs that say how weights were stored, and by what."""


def text_encoder(source: Source, name: str) -> Component:
    given = {key: value for key, value in source.configs[name].items() if key not in _UNUSED}
    with foreign_errors(source.path / name / "config.json"):
        config = CLIPTextConfig(**given)
    setattr(config, "_attn_implementation", "sdpa")  # noqa: B010  # there is no public way to choose it without loading
    raw, projected = source.family.raw_hidden_states, name == "text_encoder_2"
    with foreign_errors(source.path / name / "config.json"), torch.device("meta"):
        whole = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
        model = whole.text_model if isinstance(whole, CLIPTextModelWithProjection) else whole
        module = TextEncoder(model, whole.text_projection if isinstance(whole, CLIPTextModelWithProjection) else None, raw=raw)
    width, layers = config.hidden_size, config.num_hidden_layers
    label = "hidden_states" if raw else "normed_hidden_states"
    tokens: tuple[int | str, ...] = ("batch_size", "sequence_length", width)
    last, pooled = Port("last_hidden_state", "float32", tokens), Port("pooler_output", "float32", ("batch_size", width))
    outputs = [Port("text_embeds", "float32", ("batch_size", int(config.projection_dim or 0))), last] if projected else [last, pooled]
    outputs += [Port(f"{label}.{k}", "float32", tokens) for k in hidden_states(layers, whole=raw)]
    found = source.weights(name)
    ports = (Port("input_ids", "int64", ("batch_size", "sequence_length")),)
    return assembled(
        source,
        name,
        module,
        "",
        ports,
        tuple(outputs),
        found.renamed(text_names(found.shapes)),
        config.to_dict(),
        vocabulary=config.vocab_size,
    )


class VisionTower(nn.Module):
    """CLIP's image encoder and its projection to the space in which concepts are compared."""

    def __init__(self, model: CLIPVisionModel, projection: nn.Linear) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model, projection

    def forward(self, clip_input: Tensor) -> Tensor:
        """clip_input (batch, 3, size, size), normalized → (batch, projection), not normalized."""
        model = self.vision_model
        patches = model.embeddings.patch_embedding(clip_input).flatten(2).transpose(1, 2)
        first = model.embeddings.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1)
        x = model.pre_layrnorm(tokens + model.embeddings.position_embedding(torch.arange(tokens.shape[1])))
        for layer in model.encoder.layers:
            x = layer(x, None, is_causal=False)
        return self.visual_projection(model.post_layernorm(x[:, 0]))


def safety_checker(source: Source) -> Component:
    """The network of diffusers' StableDiffusionSafetyChecker; `safety_concepts.write` writes the rest."""
    whole = source.configs["safety_checker"]
    vision = dict(whole.get("vision_config") or {}) | dict(whole.get("vision_config_dict") or {})
    with foreign_errors(source.path / "safety_checker/config.json"):
        config = CLIPVisionConfig(**{key: value for key, value in vision.items() if key not in _UNUSED})
    setattr(config, "_attn_implementation", "sdpa")  # noqa: B010  # there is no public way to choose it without loading
    width, size = int(whole.get("projection_dim", 512)), int(config.image_size)  # pyright: ignore[reportArgumentType]  # never a pair in CLIP
    with foreign_errors(source.path / "safety_checker/config.json"), torch.device("meta"):
        module = VisionTower(CLIPVisionModel(config), nn.Linear(config.hidden_size, width, bias=False))
    found = source.weights("safety_checker")
    # Names from before transformers 5 have one more level, for the model inside CLIPVisionModel.
    names = {key.replace("vision_model.vision_model.", "vision_model."): key for key in found.shapes if key not in CONCEPTS}
    inputs = (Port("clip_input", "float32", ("batch_size", 3, size, size)),)
    outputs = (Port("image_embeds", "float32", ("batch_size", width)),)
    return assembled(source, "safety_checker", module, "", inputs, outputs, found.renamed(names), config.to_dict())
