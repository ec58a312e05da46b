"""The names that LoRA files have for the layers of a model.

A layer of a bundle is called as in diffusers' and transformers' state dicts. Files call it otherwise: kohya's with dots as
underscores (`lora_unet_down_blocks_1_attentions_0_proj_in`), SDXL's often by the places of the original code
(`input_blocks_4_1_proj_in`), diffusers' with the component in front (`unet.down_blocks.1…`). Rather than taking such names
apart, which underscores make ambiguous, every name that each layer of the model may have is made, and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Place(NamedTuple):
    """A layer of a bundle."""

    component: str
    module: str
    """The name of its weight without `.weight`."""


_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "unet": ("lora_unet_", "unet_", "base_model_model_", "diffusion_model_", ""),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
})  # fmt: skip
_ORIGINAL_TOP: Mapping[str, str] = MappingProxyType({
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
})  # fmt: skip
_ORIGINAL_RESNET: Mapping[str, str] = MappingProxyType({
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
})  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def places(modules: Mapping[str, Collection[str]]) -> dict[str, Place]:
    """Where each name leads, in the form that `flat` gives it; `modules` are the layers of each component."""
    found: dict[str, Place] = {}
    for component, names in modules.items():
        others = original_names(names) if component == "unet" else {name: name.removeprefix("text_model.") for name in names}
        for name in names:
            for prefix in _PREFIXES.get(component, ()):
                for alias in {name, others.get(name, name)}:
                    found[prefix + flat(alias)] = Place(component, name)
    return found


def flat(name: str) -> str:
    """`name` with underscores for dots, and without what diffusers 0.2x put in for attention processors."""
    name = re.sub(r"\.processor\.to_out_lora$", ".to_out.0", name)
    return re.sub(r"\.processor\.(to_[qkv])_lora$", r".\1", name).replace(".", "_")


def original_names(modules: Collection[str]) -> dict[str, str]:
    """What the original Stable Diffusion code calls the layers `modules` of a diffusers U-Net; those it has."""
    layers = [int(match[4]) for match in map(_BLOCK.fullmatch, modules) if match and match[1] == "down" and match[3] == "resnets"]
    stride = max(layers, default=0) + 2  # a block's layers and its change of size
    attentive = {int(match[2]) for match in map(_BLOCK.fullmatch, modules) if match and (match[1], match[3]) == ("up", "attentions")}
    named = ((module, _original(module, stride, attentive)) for module in modules)
    return {module: name for module, name in named if name is not None}


def _original(module: str, stride: int, attentive: Collection[int]) -> str | None:
    if middle := _MIDDLE.fullmatch(module):
        place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
        return f"middle_block.{place}.{_ORIGINAL_RESNET.get(middle[3], middle[3])}"
    match = _BLOCK.fullmatch(module)
    if match is None:
        return _ORIGINAL_TOP.get(module)
    down, block, kind, layer, rest = match[1] == "down", int(match[2]), match[3], int(match[4]), match[5]
    side, first = ("input_blocks", 1) if down else ("output_blocks", 0)
    match kind:
        case "resnets":
            return f"{side}.{first + stride * block + layer}.0.{_ORIGINAL_RESNET.get(rest, rest)}"
        case "attentions":
            return f"{side}.{first + stride * block + layer}.1.{rest}"
        case "downsamplers":
            return f"{side}.{stride * (block + 1)}.0.op"
        case _:
            return f"{side}.{stride * (block + 1) - 1}.{2 if block in attentive else 1}.{rest}"
