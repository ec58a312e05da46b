"""Checkpoints in one file, with the names of the original code (CompVis's latent-diffusion, Stability's generative-models).

Configs are read off the shapes, so that pruned and distilled U-Nets are nothing special; what shapes cannot say (prediction,
zero terminal SNR) comes from the file's metadata and marks, where its makers left any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...models import families
from ...models.errors import BundleError
from ...models.formats import safetensors_file as safetensors
from .diffusers_folder import Array, Source, Weights, of_file, text_names
from .openclip_names import text_tower

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model.")
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def open_checkpoint(path: Path, prediction: str | None = None) -> Source:
    """Open the checkpoint in the safetensors file `path`; `prediction` overrides what the file says or what is usual for its family.

    Raises:
        BundleError: not safetensors (pickles are never read), or not a Stable Diffusion checkpoint.
    """
    whole = _unscaled(of_file(path))
    metadata = safetensors.open_weights(path).metadata
    if f"{UNET}input_blocks.0.0.weight" not in whole.shapes or f"{VAE}decoder.conv_in.weight" not in whole.shapes:
        raise BundleError(
            f"{path}: not a Stable Diffusion checkpoint; expected tensors {UNET}… and {VAE}…; "
            "a LoRA is merged with --lora, a VAE alone belongs into a diffusers folder"
        )
    try:
        unet, unet_config = _unet(_under(whole, UNET), path)
        vae, vae_config = _vae(_under(whole, VAE))
        texts = _texts(whole)
    except (LookupError, ValueError, StopIteration) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "has tensors of unknown names or shapes"
        raise BundleError(f"{path}: {what}; expected a complete Stable Diffusion checkpoint; download it again") from error
    refiner = unet_config["cross_attention_dim"] == _width(texts.get("text_encoder_2")) and "text_encoder" not in texts
    large = "addition_embed_type" in unet_config
    vae_config["scaling_factor"] = 0.13025 if large else 0.18215
    if "edm_mean" in whole.shapes and "edm_std" in whole.shapes:  # Playground 2.5
        statistics = {f"latents_{name}": whole.read(f"edm_{name}").ravel().tolist() for name in ("mean", "std")}
        vae_config |= {"scaling_factor": 0.5, **statistics}
    if not large and unet_config["use_linear_projection"]:
        texts = {name: (tensors, {**config, "hidden_act": "gelu"}) for name, (tensors, config) in texts.items()}  # SD 2 has OpenCLIP's
    classes: dict[str, tuple[str, str]] = dict.fromkeys(texts, ("transformers", "CLIPTextModel"))
    family = families.detect(
        "StableDiffusionXLImg2ImgPipeline" if refiner else "StableDiffusionPipeline",
        classes,
        unet_config,
        int(vae_config["latent_channels"]),
    )
    missing = [name for name in family.text_encoders if name not in texts]
    if "text_encoder" not in texts and any(name.startswith("conditioner.embedders.1.") for name in whole.shapes):
        missing = ["text_encoder"]  # the second encoder of a base model: its first is missing
    if missing:
        raise BundleError(f"{path}: a {family.name} U-Net without {missing[0]}; expected a complete checkpoint")
    scheduler, guess = _scheduler(family, whole, metadata, prediction)
    configs = {"unet": unet_config, "vae": vae_config, "scheduler": scheduler}
    weights = {"unet": unet, "vae": vae} | {name: tensors for name, (tensors, _) in texts.items()}
    return Source(
        name=metadata.get("modelspec.title") or path.stem,
        path=path,
        family=family,
        configs=MappingProxyType(configs | {name: config for name, (_, config) in texts.items()}),
        weights=weights.__getitem__,
        overrides={},
        licence=metadata.get("modelspec.license") or "unknown",
        guess=f"{path}: {guess}" if guess else "",
    )


def _unscaled(whole: Weights) -> Weights:
    """`whole` with the factors of 8-bit floats (`X.scale_weight`, as ComfyUI saves them) multiplied into the weights `X.weight`."""
    ends = (".scale_weight", ".scale_input", "scaled_fp8")
    readers = {name: read for name, read in whole.readers.items() if not name.endswith(ends)}
    for name in [name for name in whole.readers if name.endswith(".scale_weight")]:
        weight = f"{name.removesuffix('.scale_weight')}.weight"
        if weight in readers:
            readers[weight] = partial(_times, readers[weight], whole.readers[name])
    return Weights({name: whole.shapes[name] for name in readers}, readers)


def _times(read: Callable[[], Array], factor: Callable[[], Array]) -> Array:
    weight, scale = read(), factor()
    return weight * (scale if scale.size == 1 else scale.reshape(-1, *(1,) * (weight.ndim - 1)))


def _under(whole: Weights, prefix: str) -> Weights:
    return whole.renamed({name.removeprefix(prefix): name for name in whole.shapes if name.startswith(prefix)})


def _width(text: tuple[Weights, families.Config] | None) -> int | None:
    return None if text is None else int(text[1]["hidden_size"])


def _unet(tensors: Weights, path: Path) -> tuple[Weights, families.Config]:
    """The U-Net under diffusers' names, and its config."""
    shapes = tensors.shapes
    levels: list[list[int]] = [[]]  # numbers of the input blocks of each level
    for block in range(1, 1 + len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")}) - 1):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(block)
    if len({len(level) for level in levels}) != 1:
        raise BundleError(f"{path}: levels of {[len(level) for level in levels]} layers: unknown U-Net architecture")
    layers = len(levels[0])
    down = [[_depth(shapes, f"input_blocks.{number}.1") for number in level] for level in levels]
    up = [
        [_depth(shapes, f"output_blocks.{level * (layers + 1) + layer}.1") for layer in range(layers + 1)] for level in range(len(levels))
    ]
    depths = [max(level) for level in down]
    regular = all(len({*one, *other}) == 1 for one, other in zip(down, reversed(up), strict=True))
    context = next(shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    linear = len(next(shape for name, shape in shapes.items() if name.endswith(".proj_in.weight"))) == 2
    channels = [shapes[f"input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": context,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if max(level) else "UpBlock2D" for level in up],
        "transformer_layers_per_block": [max(1, depth) for depth in depths] if regular else [_layers(level) for level in down],
        "mid_block_type": _middle(shapes),
        # Both are numbers of heads: 8 everywhere in SD 1, later heads of 64.
        "attention_head_dim": [max(1, size // 64) for size in channels] if linear else 8,
        "use_linear_projection": linear,
        "sample_size": 128 if "label_emb.0.0.weight" in shapes else 64,
    }
    if not regular:
        config["reverse_transformer_layers_per_block"] = [_layers(level) for level in up]
    if "time_embed.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes["time_embed.cond_proj.weight"][1]
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return tensors.renamed({unet_name(name, layers): name for name in shapes}), config


def _layers(depths: Sequence[int]) -> int | list[int]:
    """The depths of a block's transformers as diffusers' config has them; a block without any ignores its number."""
    return [*depths] if max(depths) else 1


def _middle(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The middle block: distilled U-Nets have one layer without attention there (Segmind Vega), or nothing (BK-SDM tiny, KOALA)."""
    if not any(name.startswith("middle_block.") for name in shapes):
        return None
    return "UNetMidBlock2DCrossAttn" if any(name.startswith("middle_block.2.") for name in shapes) else "UNetMidBlock2D"


def _depth(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return len({name.split(".")[4] for name in shapes if name.startswith(f"{prefix}.transformer_blocks.")})


def unet_name(name: str, layers: int) -> str:
    """Diffusers' name of the U-Net tensor that the original code calls `name`, for `layers` a block."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if not re.match(r"(input_blocks|output_blocks)\.\d+\.\d+\.|middle_block\.\d+\.", name):
        return name
    part, number, place, *rest = stem.split(".")
    if part == "middle_block":
        inner = ".".join([place, *rest])
        return (
            f"mid_block.attentions.0.{inner}.{kind}" if number == "1" else f"mid_block.resnets.{int(number) // 2}.{_resnet(inner)}.{kind}"
        )
    inner = ".".join(rest)
    if part == "input_blocks":
        level, layer = divmod(int(number) - 1, layers + 1)
        block = f"down_blocks.{level}"
        if inner == "op":
            return f"{block}.downsamplers.0.conv.{kind}"
    else:
        level, layer = divmod(int(number), layers + 1)
        block = f"up_blocks.{level}"
        if inner == "conv":  # stands after the attention where there is one
            return f"{block}.upsamplers.0.conv.{kind}"
    return f"{block}.resnets.{layer}.{_resnet(inner)}.{kind}" if place == "0" else f"{block}.attentions.{layer}.{inner}.{kind}"


def _resnet(inner: str) -> str:
    return _RESNET.get(inner, inner)


def _vae(tensors: Weights) -> tuple[Weights, dict[str, Any]]:
    """The autoencoder under diffusers' names, and its config."""
    shapes = {
        name: shape
        for name, shape in tensors.shapes.items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    layers = len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")})
    config: dict[str, Any] = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }
    return tensors.renamed({vae_name(name, levels): name for name in shapes}), config


def vae_name(name: str, levels: int) -> str:
    """Diffusers' name of the autoencoder's tensor that the original code calls `name`."""
    name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.up\.(\d+)\.block\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.resnets.", name)
    name = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"\.up\.(\d+)\.upsample\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.upsamplers.0.", name)
    name = re.sub(r"\.mid\.block_(\d)\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", name)
    for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"), ("norm", "group_norm")):
        name = name.replace(f".mid.attn_1.{old}.", f".mid_block.attentions.0.{new}.")
    return name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")


def _texts(whole: Weights) -> dict[str, tuple[Weights, families.Config]]:
    """The text encoders, by their names in a pipeline."""
    found: dict[str, tuple[Weights, families.Config]] = {}
    for prefix in CLIP:
        tensors = _under(whole, prefix)
        if tensors.shapes:
            tensors = tensors.renamed(text_names(tensors.shapes))  # NovelAI's files lack the level text_model
            found["text_encoder"] = (tensors, _clip_config(tensors))
    for prefix in OPEN_CLIP:
        tensors = _under(whole, prefix)
        if tensors.shapes:
            is_large = prefix.startswith("conditioner.")
            found["text_encoder_2" if is_large else "text_encoder"] = text_tower(tensors, projected=is_large, drop_last=not is_large)
    return found


def _clip_config(tensors: Weights) -> families.Config:
    vocabulary, width = tensors.shapes["text_model.embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors.shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len({name.split(".")[3] for name in tensors.shapes if name.startswith("text_model.encoder.layers.")}),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": tensors.shapes["text_model.embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,  # the largest id is the end, whatever the vocabulary
    }


def _scheduler(family: families.Family, whole: Weights, metadata: Mapping[str, str], prediction: str | None) -> tuple[families.Config, str]:
    """The scheduler config, and the reason if the prediction type is a guess: v-prediction for SD 2, whose 768 version has no other mark,
    and noise for the others. Marks of EDM: `edm_mean` (Playground 2.5), `edm_vpred.sigma_max` (CosXL).
    """
    if "edm_mean" in whole.shapes:
        return {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}, ""
    if "edm_vpred.sigma_max" in whole.shapes:
        low, high = (
            float(whole.read(name).ravel()[0]) if (name := f"edm_vpred.{end}") in whole.shapes else usual
            for end, usual in (("sigma_min", 0.002), ("sigma_max", 120.0))
        )
        range_of = {"sigma_min": low, "sigma_max": high, "sigma_data": 1.0}
        return {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", **range_of}, ""
    said = prediction or metadata.get("modelspec.prediction_type", "")
    marked = "v_pred" in whole.shapes
    predicts_v = said.startswith("v") if said else marked or family.name == "sd2"
    guess = "" if said or marked else "the file does not state its prediction type"
    config: dict[str, Any] = {
        "_class_name": "EulerDiscreteScheduler" if family.architecture == "sdxl" else "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "prediction_type": "v_prediction" if predicts_v else "epsilon",
    }
    if "ztsnr" in whole.shapes:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config, guess
