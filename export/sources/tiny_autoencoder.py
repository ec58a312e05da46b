"""Tiny autoencoders in TAESD's layout: a diffusers folder, or one safetensors file with diffusers' or the original names.

https://github.com/madebyollin/taesd
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...models.errors import BundleError, RequestError
from ...models.families import Config
from ...models.formats.small_file import read_json
from .diffusers_folder import Source, Weights, of_file, open_weights

DECODER = "decoder.layers."


def add(source: Source, path: Path) -> Source:
    """`source` with the decoder of the tiny autoencoder at `path` as the component `tiny_decoder`.

    Raises:
        BundleError: not a TAESD, or damaged.
        RequestError: no such file, or one for other latents.
    """
    if not path.exists():
        raise RequestError(f"{path}: no such file or folder; expected a tiny autoencoder (TAESD) in safetensors")
    weights, config = _folder(path) if path.is_dir() else _file(path)
    vae = source.configs["vae"]
    channels, downscale = int(config["latent_channels"]), 2 ** (len(config["num_decoder_blocks"]) - 1)
    if (channels, downscale) != (int(vae["latent_channels"]), source.downscale):
        raise RequestError(
            f"{path}: decodes latents of {channels} channels and 1/{downscale} size, but {source.name} has "
            f"{vae['latent_channels']} channels and 1/{source.downscale} size: take the tiny autoencoder made for this model"
        )

    def read(name: str) -> Weights:
        return weights if name == "tiny_decoder" else source.weights(name)

    configs = MappingProxyType({**source.configs, "tiny_decoder": config})
    files = tuple(sorted(path.glob("*"))) if path.is_dir() else (path,)
    return replace(source, configs=configs, weights=read, extras=(*source.extras, "tiny_decoder"), others=files)


def _folder(folder: Path) -> tuple[Weights, Config]:
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderTiny":
        raise BundleError(f"{folder / 'config.json'}: a {config.get('_class_name')!r}, expected an AutoencoderTiny of diffusers")
    weights = _decoder(open_weights(folder), folder)
    said = {key: value for key, value in config.items() if key != "block_out_channels"}  # written by diffusers, and refused by it
    return weights, {**said, **_shape(weights.shapes, folder)}


def _file(path: Path) -> tuple[Weights, Config]:
    weights = _decoder(of_file(path), path)
    return weights, _shape(weights.shapes, path)


def _decoder(tensors: Weights, path: Path) -> Weights:
    """The decoder's tensors under diffusers' names. The original counts from 1: its first layer, a clamp, has no weights."""
    current = {name: name for name in tensors.shapes if name.startswith(DECODER)}
    original = {name: re.fullmatch(r"(\d+)\.(.+)", name) for name in tensors.shapes}
    old = {f"{DECODER}{int(match[1]) - 1}.{match[2]}": name for name, match in original.items() if match}
    if not current and f"{DECODER}0.weight" not in old:
        raise BundleError(
            f"{path}: no decoder of a tiny autoencoder: expected {DECODER}0.weight… (diffusers) or 1.weight… (taesd_decoder.safetensors)"
        )
    return tensors.renamed(current or old)


def _shape(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """Derive the config from the shapes: a convolution, then stages of residual blocks, each ending with a convolution."""
    places: dict[int, bool] = {}
    for name in shapes:
        place, _, inner = name.removeprefix(DECODER).partition(".")
        places[int(place)] = inner.startswith(("conv.", "skip."))
    kinds = [block for _, block in sorted(places.items())]
    blocks: list[int] = []
    count = 0
    for block in kinds[1:]:
        count += block
        if not block:
            blocks.append(count)
            count = 0
    convolutions = [shapes[f"{DECODER}{place}.weight"] for place, block in sorted(places.items()) if not block]
    if kinds[:1] != [False] or kinds[-1] or len(blocks) < 1 or any(len(shape) != 4 for shape in convolutions):
        raise BundleError(f"{path}: layers of no known tiny autoencoder: expected convolutions between stages of residual blocks")
    widths = [shape[1] for shape in convolutions[1:]]
    return {
        "latent_channels": convolutions[0][1],
        "out_channels": convolutions[-1][0],
        "num_decoder_blocks": blocks,
        "decoder_block_out_channels": widths,
    }
