"""A LoRA and an embedding for the demo model: random, a few kilobytes, and strong enough to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffusette.models.bundle import DEMO
from diffusette.models.formats.safetensors_file import open_weights, save_weights

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
SOURCE = DEMO.parent / "source"


def save_lora(path: Path, *, seed: int = 0) -> Path:
    """A LoRA of rank 2 on one layer of the U-Net."""
    with open_weights(SOURCE / "unet" / "diffusion_pytorch_model.safetensors") as weights:
        rows, columns = weights[f"{LAYER}.weight"].shape
    rng = np.random.default_rng(seed)
    up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 2), (2, columns)))
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down})
    return path


def save_embedding(path: Path, *, seed: int = 0) -> Path:
    """Two vectors; the word is the file's name."""
    with open_weights(SOURCE / "text_encoder" / "model.safetensors") as weights:
        name = next(name for name in weights if name.endswith("token_embedding.weight"))
        width = weights[name].shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, {"emb_params": np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32)})
    return path
