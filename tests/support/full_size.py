"""Models of full size with seeded random weights: `python -m tests.support.full_size FOLDER [sdxl]`.

Speed and memory do not depend on weights.
SD 1.5: 860 million parameters of the U-Net, 123 million of the text encoder, 84 million of the VAE, in fp16: 2.1 GB.
SDXL: 2,567 million of the U-Net, 123 and 695 million of the text encoders, 84 million of the VAE, in fp16: 6.9 GB, written tensor
by tensor.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusette.models.formats.safetensors_file import save_weights
from tests.support import tiny_models

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def save(folder: Path) -> Path:
    """Write the diffusers folder, once; gives `folder`."""
    if (folder / "model_index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tiny_models.save_tokenizer(folder / "tokenizer", pad=tiny_models.END, fast=False)
    parts: dict[str, nn.Module] = {
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        ),
        "vae": AutoencoderKL(**VAE, sample_size=512),
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    }
    for name, part in parts.items():
        generator = torch.Generator().manual_seed(len(name))
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        part.half().save_pretrained(folder / name)
    PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def save_xl(folder: Path) -> Path:
    """Write a diffusers folder of SDXL's size, once; gives `folder`. No more than a tensor is in memory."""
    if (folder / "model_index.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    ends = [
        tiny_models.save_tokenizer(folder / f"tokenizer{suffix}", pad=pad, fast=False)
        for suffix, pad in (("", tiny_models.END), ("_2", "!"))
    ]
    tokens = {"vocab_size": 49408, "bos_token_id": ends[0] - 2, "eos_token_id": ends[0] - 1, "pad_token_id": ends[0] - 1}
    small = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **tokens)
    wide = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "hidden_act": "gelu"}
    large = CLIPTextConfig(num_hidden_layers=32, num_attention_heads=20, **wide, **tokens)
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "text_encoder": CLIPTextModel(small),
            "text_encoder_2": CLIPTextModelWithProjection(large),
            "vae": AutoencoderKL(**VAE, sample_size=1024, scaling_factor=0.13025),
            "unet": UNet2DConditionModel(**SDXL),
        }
    for name, part in parts.items():
        (folder / name).mkdir(exist_ok=True)
        (part.config.save_pretrained if name.startswith("text") else part.save_config)(folder / name)
        shapes = {key: tuple(value.shape) for key, value in part.state_dict().items()}
        save_weights(folder / name / f"{'model' if name.startswith('text') else 'diffusion_pytorch_model'}.safetensors", Random(shapes))
    EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    ).save_pretrained(folder / "scheduler")
    classes = {name: ["transformers" if name.startswith("text") else "diffusers", type(part).__name__] for name, part in parts.items()}
    tokenizers = {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")}
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1", **classes, **tokenizers}
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, indent=2))
    return folder


class Random(Mapping[str, Any]):
    """Seeded weights in fp16 by name, made when they are asked for: matrices of variance 1 / inputs, norms and biases as they begin."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)

    def __getitem__(self, name: str) -> Any:
        shape = self.shapes[name]
        if len(shape) < 2:
            return np.full(shape, name.endswith("weight"), np.float16)
        first = zlib.crc32(name.encode()) % len(self.block)
        size = int(np.prod(shape))
        data = np.resize(np.roll(self.block, first), size) * np.float32((size / shape[0]) ** -0.5)
        return data.astype(np.float16).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Run(NamedTuple):
    """What a command took."""

    seconds: float
    rss: int
    """The largest resident memory of one of its processes, in bytes."""
    anonymous: int
    """Likewise without what is mapped from files."""


def measured(command: Sequence[str]) -> Run:
    """Run `command` to its good end, looking at its processes five times a second (Linux)."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    rss = anonymous = 0
    while process.poll() is None:
        for one in _family(process.pid):
            try:
                lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
                found = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
            except OSError:  # it has just ended
                continue
            rss, anonymous = max(rss, found.get("Rss", 0)), max(anonymous, found.get("Anonymous", 0))
        time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(time.monotonic() - started, rss, anonymous)


def _family(pid: int) -> list[int]:
    """`pid` and the processes that came from it."""
    found = [pid]
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += _family(int(child))
    except OSError:  # it has just ended
        pass
    return found


if __name__ == "__main__":
    (save_xl if sys.argv[2:] == ["sdxl"] else save)(Path(sys.argv[1]))
