"""The parts that every pipeline has: text encoders, U-Net, and both halves of the autoencoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..models.families import Config
from . import extras
from .component import Component, Port, assembled
from .source import Source, Weights

SKIPPED_LAYERS = 11
"""CLIP skip goes back to this many layers before the last, as the interfaces that people know do."""


def build(source: Source, name: str) -> Component:
    """The component `name` of `source`, one of `source.components`.

    Raises:
        BundleError: weights are missing, too many, or of another shape than the config says.
    """
    if name.startswith("text_encoder"):
        return _text_encoder(source, name)
    builders = {
        "unet": _unet,
        "vae_encoder": _vae_encoder,
        "vae_decoder": _vae_decoder,
        "safety_checker": extras.safety_checker,
        "tiny_decoder": extras.tiny_decoder,
    }
    return builders[name](source)


class TextEncoder(nn.Module):
    """A CLIP text encoder with the hidden states that CLIP skip and SDXL want."""

    def __init__(self, model: CLIPTextModel, projection: nn.Linear | None, *, raw: bool) -> None:
        super().__init__()
        self.text_model = model
        if projection is not None:
            self.text_projection = projection
        self.raw = raw

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """input_ids (batch, tokens) int64 → last hidden state, pooled (with a projection: projected, and first), earlier hidden states."""
        model = self.text_model
        places = torch.arange(input_ids.shape[1])
        x = model.embeddings.token_embedding(input_ids) + model.embeddings.position_embedding(places)
        states: list[Tensor] = []
        for layer in model.encoder.layers:
            states.append(x)
            x = layer(x, None, is_causal=True)
        states.append(x)
        last = model.final_layer_norm(x)
        # Before transformers 4.30 configs said 2 whatever the vocabulary; the end token is then the largest id.
        token: Any = model.config.eos_token_id
        end = input_ids if token == 2 else torch.eq(input_ids, int(token))
        place: Tensor = end.type(torch.int32).argmax(dim=-1)[:, None, None].expand(-1, 1, last.shape[2])
        pooled = torch.gather(last, 1, place)[:, 0]
        if hasattr(self, "text_projection"):
            pooled = self.text_projection(pooled)
        kept = [states[k] if self.raw else model.final_layer_norm(states[k]) for k in hidden_states(len(states) - 1, whole=self.raw)]
        # With a projection, what pipelines of optimum and diffusers take for the pooled text is the first output.
        return (pooled, last, *kept) if hasattr(self, "text_projection") else (last, pooled, *kept)


def hidden_states(layers: int, *, whole: bool = False) -> range:
    """Indices of the hidden states given beside the last normed one: layers - 1, layers - 2, …

    As many as CLIP skip can go back, or the `whole` of them, from `layers` to the embeddings (0), as optimum's SDXL pipelines ask for.
    """
    return range(layers, -1, -1) if whole else range(layers - 1, max(0, layers - 1 - SKIPPED_LAYERS), -1)


def _text_encoder(source: Source, name: str) -> Component:
    config = CLIPTextConfig(**{k: v for k, v in source.configs[name].items() if k not in {"torch_dtype", "dtype", "transformers_version"}})
    setattr(config, "_attn_implementation", "sdpa")  # noqa: B010  # there is no public way to choose it without loading
    raw, projected = source.family.raw_hidden_states, name == "text_encoder_2"
    with torch.device("meta"):
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
        found.renamed(_text_names(found.shapes)),
        config.to_dict(),
        vocabulary=config.vocab_size,
    )


def _text_names(shapes: Iterable[str]) -> dict[str, str]:
    """The names of a text encoder's tensors as they are in bundles, with what they are called in the source.

    transformers 5 names the tensors of CLIPTextModel without the level that older files (and every LoRA) have.
    """
    return {key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": key for key in shapes}


def modules(source: Source) -> dict[str, set[str]]:
    """The layers that a LoRA may change, of the U-Net and the text encoders, by their names in the bundle."""
    found = {name: set(_text_names(source.weights(name).shapes)) for name in source.family.text_encoders}
    found["unet"] = set(source.weights("unet").shapes)
    return {name: {key.removesuffix(".weight") for key in keys if key.endswith(".weight")} for name, keys in found.items()}


class UNet(nn.Module):
    """A U-Net whose additional inputs are arguments of their own."""

    def __init__(self, model: UNet2DConditionModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *more: Tensor) -> Tensor:
        """The prediction for `sample` (batch, channels, height, width) at `timestep` (batch)."""
        given = dict(zip(self.names, more, strict=True))
        condition = given.pop("timestep_cond", None)
        return self.model(
            sample, timestep, encoder_hidden_states, timestep_cond=condition, added_cond_kwargs=given or None, return_dict=False
        )[0]


def _unet(source: Source) -> Component:
    config = source.configs["unet"]
    with torch.device("meta"):
        kind: Any = UNet2DConditionModel
        model = kind.from_config(dict(config))
    inputs = [
        Port("sample", "float32", ("batch_size", int(config["in_channels"]), "height", "width")),
        Port("timestep", "float32", ("batch_size",)),
        Port("encoder_hidden_states", "float32", ("batch_size", "sequence_length", int(config["cross_attention_dim"]))),
    ]
    if config.get("time_cond_proj_dim"):
        inputs.append(Port("timestep_cond", "float32", ("batch_size", int(config["time_cond_proj_dim"]))))
    if config.get("addition_embed_type") == "text_time":
        pooled = int(source.configs["text_encoder_2"].get("projection_dim", 512))
        ids = (int(config["projection_class_embeddings_input_dim"]) - pooled) // int(config["addition_time_embed_dim"])
        inputs += [Port("text_embeds", "float32", ("batch_size", pooled)), Port("time_ids", "float32", ("batch_size", ids))]
    module = UNet(model, tuple(port.name for port in inputs[3:]))
    outputs = (Port("out_sample", "float32", ("batch_size", int(config["out_channels"]), "height", "width")),)
    return assembled(source, "unet", module, "model.", tuple(inputs), outputs, source.weights("unet"), config)


class Encoder(nn.Module):
    """Picture to the mean and log-variance of its latent."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        """(batch, 3, height, width) in [-1, 1] → (batch, 2 × latent channels, height / factor, width / factor)."""
        x = self.encoder(sample)
        return x if self.quant_conv is None else self.quant_conv(x)


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, latent channels, height, width), unscaled → (batch, 3, height × factor, width × factor) about [-1, 1]."""
        x = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
        return self.decoder(x)


def _vae(source: Source) -> tuple[Any, Weights, Config]:
    config = source.configs["vae"]
    with torch.device("meta"):
        kind: Any = AutoencoderKL
        model = kind.from_config(dict(config))
    found = source.weights("vae")
    return model, found.renamed({_current_attention(key): key for key in found.shapes}), config


def _current_attention(key: str) -> str:
    """Attention of the autoencoder under the names that diffusers has since 0.17."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key


def _vae_encoder(source: Source) -> Component:
    model, weights, config = _vae(source)
    weights = weights.renamed({key: key for key in weights.shapes if key.startswith(("encoder.", "quant_conv."))})
    inputs = (Port("sample", "float32", ("batch_size", int(config["in_channels"]), "height", "width")),)
    latent: tuple[int | str, ...] = ("batch_size", 2 * int(config["latent_channels"]), "latent_height", "latent_width")
    return assembled(source, "vae_encoder", Encoder(model), "", inputs, (Port("latent_parameters", "float32", latent),), weights, config)


def _vae_decoder(source: Source) -> Component:
    model, weights, config = _vae(source)
    weights = weights.renamed({key: key for key in weights.shapes if key.startswith(("decoder.", "post_quant_conv."))})
    inputs = (Port("latent_sample", "float32", ("batch_size", int(config["latent_channels"]), "height", "width")),)
    picture: tuple[int | str, ...] = ("batch_size", int(config["out_channels"]), "image_height", "image_width")
    return assembled(source, "vae_decoder", Decoder(model), "", inputs, (Port("sample", "float32", picture),), weights, config)
