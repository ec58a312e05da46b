"""The whole recipe: `python models/demo/build.py` trains what is not trained yet, then writes `source/` and `bundle/`.

Each stage is a program of its own, keeps its checkpoint under build/demo-model/, and goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import autoencoder
import click
import data
import numpy as np
import text
import torch
import unet
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTextModel

SOURCE = data.HERE / "source"
BUNDLE = data.HERE / "bundle"
DEFAULTS = {"width": 128, "height": 128, "steps": 10, "guidance": 2.5, "sampler": "dpm++2m", "schedule": "model"}
BAR = 31.0
"""Of the U-Net against torch, in dB: enough for each of 24 images to reach 30 dB against the float bundle's."""
STAGES = ("data", "autoencoder", "text", "unet", "decoder", "judge")


def done(stage: str) -> bool:
    """Whether a stage that does not resume by itself has left its result."""
    return {"text": text.CHECKPOINT, "judge": data.WORK / "judge.pt"}.get(stage, Path("none")).exists()


def assemble(folder: Path) -> None:
    """Write the trained parts as an ordinary diffusers folder, weights in fp16."""
    encoder = text.Encoder()
    state = torch.load(unet.CHECKPOINT, weights_only=True)
    model, text_encoder, vae = unet.build(), text.build(encoder), autoencoder.build()
    model.load_state_dict(state["average"][0])
    text_encoder.load_state_dict(state["average"][1])
    vae.load_state_dict(torch.load(data.WORK / "autoencoder-final.pt", weights_only=True)["vae"])
    vae.register_to_config(scaling_factor=1.0)
    parts: dict[str, AutoencoderKL | CLIPTextModel | object] = {"unet": model, "text_encoder": text_encoder, "vae": vae}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name, safe_serialization=True)  # pyright: ignore[reportAttributeAccessIssue]
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    save_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "_name_or_path": "diffusette-demo",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "diffusette.json", DEFAULTS)
    rng, subjects = np.random.default_rng(8), data.read_subjects()
    styles, backgrounds = list(data.STYLES), list(data.BACKGROUNDS)
    rows = rng.permutation(len(subjects.icons))[:12]
    prompts = [f"{subjects.words[row][0]}, {styles[index % 2]} style, {backgrounds[index]} background" for index, row in enumerate(rows)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    shutil.copy(data.HERE / "MODEL_CARD.md", folder / "README.md")
    shutil.copy(data.HERE / "LICENSES.md", folder / "LICENSE.md")


def save_tokenizer(folder: Path) -> None:
    shutil.copytree(text.TOKENIZER, folder, dirs_exist_ok=True)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": text.LENGTH,
            "bos_token": text.START,
            "eos_token": text.END,
            "unk_token": text.END,
            "pad_token": text.END,
            "do_lower_case": True,
        },
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@click.command()
@click.option("--assemble-only", is_flag=True, help="Take the checkpoints as they are.")
def main(assemble_only: bool) -> None:
    for stage in () if assemble_only else STAGES:
        if not done(stage):
            subprocess.run([sys.executable, str(data.HERE / f"{stage}.py")], check=True)
    fresh = data.WORK / "source"
    shutil.rmtree(fresh, ignore_errors=True)
    assemble(fresh)
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.move(fresh, SOURCE)
    exporting = ["export", str(SOURCE), str(BUNDLE), "--min-snr", str(BAR), "--force"]
    subprocess.run([sys.executable, "-m", "diffusette", *exporting], check=True)


if __name__ == "__main__":
    main()
