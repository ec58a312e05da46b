"""The U-Net, the two halves of the autoencoder and a tiny decoder as traceable modules."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ...models.families import Config
from ..sources.diffusers_folder import Source, Weights
from .traceable import Component, Port, assembled, foreign_errors


class UNet(nn.Module):
    """A U-Net whose additional inputs are separate arguments."""

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


def unet(source: Source) -> Component:
    config = source.configs["unet"]
    with foreign_errors(source.path / "unet/config.json"), torch.device("meta"):
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
        with foreign_errors(source.path / "unet/config.json"):  # either may be null
            ids = (int(config["projection_class_embeddings_input_dim"]) - pooled) // int(config["addition_time_embed_dim"])
        inputs += [Port("text_embeds", "float32", ("batch_size", pooled)), Port("time_ids", "float32", ("batch_size", ids))]
    module = UNet(model, tuple(port.name for port in inputs[3:]))
    outputs = (Port("out_sample", "float32", ("batch_size", int(config["out_channels"]), "height", "width")),)
    return assembled(source, "unet", module, "model.", tuple(inputs), outputs, source.weights("unet"), config)


class Encoder(nn.Module):
    """Image to the mean and log-variance of its latent."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        """(batch, 3, height, width) in [-1, 1] → (batch, 2 × latent channels, height / factor, width / factor)."""
        x = self.encoder(sample)
        return x if self.quant_conv is None else self.quant_conv(x)


class Decoder(nn.Module):
    """Latent to image."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, latent channels, height, width), unscaled → (batch, 3, height × factor, width × factor) about [-1, 1]."""
        x = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
        return self.decoder(x)


def _vae(source: Source) -> tuple[Any, Weights, Config]:
    config = source.configs["vae"]
    with foreign_errors(source.path / "vae/config.json"), torch.device("meta"):
        kind: Any = AutoencoderKL
        model = kind.from_config(dict(config))
    found = source.weights("vae")
    return model, found.renamed({_current_attention(key): key for key in found.shapes}), config


def _current_attention(key: str) -> str:
    """The name since diffusers 0.17 of a weight in the autoencoder's attention."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key


def vae_encoder(source: Source) -> Component:
    model, weights, config = _vae(source)
    weights = weights.renamed({key: key for key in weights.shapes if key.startswith(("encoder.", "quant_conv."))})
    inputs = (Port("sample", "float32", ("batch_size", int(config["in_channels"]), "height", "width")),)
    latent: tuple[int | str, ...] = ("batch_size", 2 * int(config["latent_channels"]), "latent_height", "latent_width")
    return assembled(source, "vae_encoder", Encoder(model), "", inputs, (Port("latent_parameters", "float32", latent),), weights, config)


def vae_decoder(source: Source) -> Component:
    model, weights, config = _vae(source)
    weights = weights.renamed({key: key for key in weights.shapes if key.startswith(("decoder.", "post_quant_conv."))})
    inputs = (Port("latent_sample", "float32", ("batch_size", int(config["latent_channels"]), "height", "width")),)
    image: tuple[int | str, ...] = ("batch_size", int(config["out_channels"]), "image_height", "image_width")
    return assembled(source, "vae_decoder", Decoder(model), "", inputs, (Port("sample", "float32", image),), weights, config)


class TinyDecoder(nn.Module):
    """The decoder of a tiny autoencoder, with the input of the large decoder."""

    def __init__(self, model: AutoencoderTiny, factor: float, offset: float) -> None:
        super().__init__()
        self.decoder, self.factor, self.offset = model.decoder, factor, offset

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, latent channels, height, width), unscaled → (batch, 3, height × factor, width × factor) about [-1, 1]."""
        return self.decoder(latent_sample * self.factor + self.offset)


def tiny_decoder(source: Source) -> Component:
    """The decoder of a TAESD (Bohan, https://github.com/madebyollin/taesd) that `tiny_autoencoder.add` has added to `source`.

    TAESD is trained on the U-Net's latents. The graph takes unscaled latents, as the large decoder does, and scales them itself.
    """
    config, vae = source.configs["tiny_decoder"], source.configs["vae"]
    with foreign_errors(source.path / "tiny autoencoder"), torch.device("meta"):
        kind: Any = AutoencoderTiny
        model = kind.from_config(dict(config))
    factor = _number(vae, "scaling_factor", 0.18215) / _number(config, "scaling_factor", 1.0)
    offset = _number(config, "shift_factor", 0.0) - _number(vae, "shift_factor", 0.0) * factor
    inputs = (Port("latent_sample", "float32", ("batch_size", int(vae["latent_channels"]), "height", "width")),)
    outputs = (Port("sample", "float32", ("batch_size", 3, "image_height", "image_width")),)
    weights = source.weights("tiny_decoder")
    return assembled(source, "tiny_decoder", TinyDecoder(model, factor, offset), "", inputs, outputs, weights, config)


def _number(config: Config, key: str, default: float) -> float:
    return float(config.get(key) or default)
