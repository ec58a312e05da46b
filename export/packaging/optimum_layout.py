"""optimum's folder layout: beside each graph the config of its module, the scheduler's, and the index of the pipeline.

With them `ORTStableDiffusionPipeline.from_pretrained` of optimum-onnx opens a bundle made for `portable`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.families import Config, Family
from ...models.formats.small_file import read_json
from ..sources.diffusers_folder import Source

INDEX, CONFIG = "model_index.json", "config.json"
_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}


def write_layout(source: Source, folder: Path) -> None:
    """Writes the configs of `source` into `folder`, which has the graphs."""
    for name in (*source.family.text_encoders, "unet"):
        _write(folder / name / CONFIG, source.configs[name])
    vae = {"scaling_factor": 0.18215, **source.configs["vae"]}  # what diffusers takes where configs do not say; optimum does not
    for name in ("vae_encoder", "vae_decoder"):
        _write(folder / name / CONFIG, vae)
    _write(folder / "scheduler/scheduler_config.json", source.configs["scheduler"])
    _write(folder / INDEX, _index(source))


def _index(source: Source) -> dict[str, Any]:
    """The pipeline's class and settings as the source has them, and the classes of what the bundle has."""
    own = read_json(source.path / INDEX) if (source.path / INDEX).is_file() else {"_class_name": _pipeline(source.family, source.configs)}
    settings = {name: value for name, value in own.items() if name == "_class_name" or isinstance(value, bool)}
    found: dict[str, Any] = {**settings, "scheduler": ["diffusers", source.configs["scheduler"]["_class_name"]]}
    for name in (*source.family.text_encoders, "unet", "vae"):
        found[name] = list(_CLASSES[name])
    for name in source.family.text_encoders:
        found[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if source.family.architecture == "sdxl":
        return found | {"image_encoder": [None, None], "feature_extractor": [None, None]}
    return found | {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}


def _pipeline(family: Family, configs: Mapping[str, Config]) -> str:
    """The diffusers pipeline class for the model."""
    if configs["scheduler"].get("_class_name") == "LCMScheduler" and configs["unet"].get("time_cond_proj_dim"):
        return "LatentConsistencyModelPipeline"
    large = "XL" if family.architecture == "sdxl" else ""
    kinds = {"text": "", "inpaint": "Inpaint", "instruct": "InstructPix2Pix", "refine": "Img2Img"}
    return f"StableDiffusion{large}{kinds[family.task]}Pipeline"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(value), indent=2, sort_keys=True) + "\n", "utf-8", newline="\n")
