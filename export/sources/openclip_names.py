"""OpenCLIP's text tower (SD 2, SDXL's second encoder) under transformers' names."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from ...models.families import Config
from .diffusers_folder import Array, Weights

_PLAIN = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def text_tower(tensors: Weights, *, projected: bool, drop_last: bool) -> tuple[Weights, Config]:
    """The tower's weights and its config; SD 2 uses all layers but the last (`drop_last`), SDXL a projection (`projected`)."""
    layers = len({name.split(".")[2] for name in tensors.shapes if name.startswith("transformer.resblocks.")}) - int(drop_last)
    shapes: dict[str, tuple[int, ...]] = {}
    readers: dict[str, Callable[[], Array]] = {}
    for name, shape in tensors.shapes.items():
        read = partial(tensors.read, name)
        if name in _PLAIN:
            shapes[_PLAIN[name]], readers[_PLAIN[name]] = shape, read
        elif name == "text_projection" and projected:
            shapes["text_projection.weight"], readers["text_projection.weight"] = shape[::-1], partial(_turned, read)
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if match is None or int(match[1]) >= layers:
            continue
        head, inner = f"text_model.encoder.layers.{match[1]}", match[2]
        if inner.startswith("attn.in_proj_"):
            for place, letter in enumerate("qkv"):
                new = f"{head}.self_attn.{letter}_proj.{inner.removeprefix('attn.in_proj_')}"
                shapes[new], readers[new] = (shape[0] // 3, *shape[1:]), partial(_third, read, place)
        else:
            stem, _, kind = inner.rpartition(".")
            new = f"{head}.{_LAYER[stem]}.{kind}"
            shapes[new], readers[new] = shape, read
    vocabulary, width = tensors.shapes["token_embedding.weight"]
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": tensors.shapes["positional_embedding"][0],
        "projection_dim": tensors.shapes["text_projection"][1] if "text_projection" in tensors.shapes else width,
        "hidden_act": "gelu",
        "eos_token_id": 2,  # the largest id is the end, whatever the vocabulary
    }
    return Weights(shapes, readers), config


def _turned(read: Callable[[], Array]) -> Array:
    return np.ascontiguousarray(read().T)


def _third(read: Callable[[], Array], place: int) -> Array:
    """One of the three stacked matrices (or vectors)."""
    return np.split(read(), 3)[place]
