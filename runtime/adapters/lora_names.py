"""The names of a model's layers in LoRA files.

A bundle names its layers as in the state dicts of diffusers and transformers. LoRA files use other names: kohya's have underscores instead
of dots (`lora_unet_down_blocks_1_attentions_0_proj_in`), SDXL's often follow the original code (`input_blocks_4_1_proj_in`), and diffusers'
begin with the component (`unet.down_blocks.1…`). Underscores make these names ambiguous to parse. Instead, all names that a layer may have
are generated and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Place(NamedTuple):
    """A layer of a bundle."""

    component: str
    module: str
    """The name of its weight without `.weight`."""


def _comfy(tower: str) -> tuple[str, ...]:
    """The prefixes under which ComfyUI saves the layers of a text encoder."""
    return (f"text_encoders_{tower}_transformer_", f"{tower}_transformer_", f"text_encoders_{tower}_", f"{tower}_")


_PREFIXES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "unet": ("lora_unet_", "unet_", "base_model_model_", "diffusion_model_", "lycoris_", "lycoris_unet_", ""),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_", *_comfy("clip_l"), *_comfy("clip_h")),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_", *_comfy("clip_g")),
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
    """Map each possible name, in the form returned by `flat`, to its layer; `modules` are the layers of each component."""
    found: dict[str, Place] = {}
    for component, names in modules.items():
        others = original_names(names) if component == "unet" else {name: name.removeprefix("text_model.") for name in names}
        for name in names:
            for prefix in _PREFIXES.get(component, ()):
                for alias in {name, others.get(name, name)}:
                    found[prefix + flat(alias)] = Place(component, name)
    return found


def flat(name: str) -> str:
    """Replace the dots of `name` with underscores and remove the attention-processor parts that diffusers 0.2x added."""
    name = re.sub(r"\.processor\.to_out_lora$", ".to_out.0", name)
    return re.sub(r"\.processor\.(to_[qkv])_lora$", r".\1", name).replace(".", "_")


def original_names(modules: Collection[str]) -> dict[str, str]:
    """Map the layers `modules` of a diffusers U-Net to their names in the original Stable Diffusion code, if they have one."""
    layers = [int(match[4]) for match in map(_BLOCK.fullmatch, modules) if match and match[1] == "down" and match[3] == "resnets"]
    stride = max(layers, default=0) + 2  # the layers of a block, and its downsampler or upsampler
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


_FOREIGN = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"^(emb_params|clip_[lg]|string_to_param)\b", "a textual inversion, given with --embedding"),
        (r"control_model|controlnet", "a ControlNet or a LoRA for one, which is not supported"),
        (r"ip_adapter|^image_proj", "an IP-Adapter, which is not supported"),
        (r"motion_module", "a motion module of AnimateDiff or a LoRA for one, which is not supported"),
        (r"single_transformer_blocks|single_blocks|double_blocks", "a file for Flux, another architecture"),
        (r"joint_blocks|^transformer\.transformer_blocks", "a file for SD 3 or another transformer, another architecture"),
        (r"vera_lambda", "a VeRA, which is not supported"),
        (r"\.oft_(blocks|diag|[rR])", "an OFT or BOFT, which is not supported"),
        (r"\.(on_input|ia3_l)\b", "an (IA)³, which is not supported"),
        (r"\.[ab][12]\.weight$", "a GLoRA, which is not supported"),
        (r"\.diff(_b)?$", "a file of whole weight differences, which is not supported"),
        (r"^\d+\.\d+\.linear\.", "a hypernetwork, which is not supported"),
        (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a whole checkpoint, to be exported on its own"),
    )
)
"""What a tensor's name shows about a file that is no LoRA for these models → what the file is."""


def foreign_kind(names: Iterable[str]) -> str:
    """Return what a file with tensors of these names is, if it is a known kind that is no LoRA for these models; otherwise empty."""
    known = list(names)
    return next((what for pattern, what in _FOREIGN if any(pattern.search(name) for name in known)), "")
