"""Facts of a model that lie in its files and not in its family: each changes the image, end to end, as in diffusers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from transformers import CLIPTextModel

from diffusette.export.export import Options, export_model
from diffusette.models import manifest as manifests
from diffusette.models.errors import BundleError
from diffusette.models.families import model_name
from diffusette.runtime import pipeline
from diffusette.runtime.sampling.rng import rng
from tests.support import tiny_models

PROMPT = "a red apple"
MEAN, STD = [1.5, -1.0, 0.5, 2.0], [2.0, 3.0, 1.5, 0.5]


def changed(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def psnr_to_diffusers(source: Path, bundle: Path, prompt: str = PROMPT) -> float:
    """PSNR between our image and diffusers' from the same noise, without a negative prompt."""
    with pipeline.load(bundle, provider="cpu") as ours:
        latent, defaults = ours.manifest.latent, ours.manifest.defaults
        noise = rng("numpy", 11).normal((1, latent.channels, defaults.height // latent.downscale, defaults.width // latent.downscale))
        image = ours.generate(prompt, seed=11, steps=4, guidance=4.0, sampler="ddim", schedule="leading").images[0]
    judge = DiffusionPipeline.from_pretrained(source)
    judge.set_progress_bar_config(disable=True)
    judge.scheduler = DDIMScheduler.from_config(judge.scheduler.config, timestep_spacing="leading", clip_sample=False)
    size = {"width": defaults.width, "height": defaults.height}
    wanted = judge(prompt, num_inference_steps=4, guidance_scale=4.0, latents=torch.from_numpy(noise), **size).images[0]
    error = np.mean((np.asarray(image, np.float64) - np.asarray(wanted, np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_latent_statistics_and_the_encoding_of_an_empty_prompt_come_from_the_files(tmp_path: Path) -> None:
    source = tiny_models.save(tmp_path / "source", "sdxl")
    changed(source / "vae/config.json", latents_mean=MEAN, latents_std=STD)
    changed(source / "model_index.json", force_zeros_for_empty_prompt=False, _name_or_path="/home/alice/models/my-model")
    report = export_model(source, tmp_path / "bundle", Options(precision="fp32"))
    assert report.manifest.latent.mean == tuple(MEAN)
    assert report.manifest.latent.std == tuple(STD)
    assert report.manifest.zero_empty_negative is False
    assert report.manifest.source.name == "my-model"
    assert psnr_to_diffusers(source, tmp_path / "bundle") >= 59.0


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_a_word_that_the_model_has_learned_is_one_token(tmp_path: Path) -> None:
    source = tiny_models.save(tmp_path / "source")
    encoder = CLIPTextModel.from_pretrained(source / "text_encoder")
    rows = encoder.config.vocab_size
    encoder.resize_token_embeddings(rows + 1)
    torch.manual_seed(1)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[-1] = 3 * torch.randn(encoder.config.hidden_size)
    encoder.save_pretrained(source / "text_encoder")
    (source / "tokenizer/added_tokens.json").write_text(json.dumps({"<cat-toy>": rows}))
    export_model(source, tmp_path / "bundle", Options(precision="fp32"))
    assert psnr_to_diffusers(source, tmp_path / "bundle", "a <cat-toy> on a table") >= 59.0


EDM = {
    "Playground 2.5": (
        {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
        {"scaling_factor": 0.5, "latents_mean": MEAN, "latents_std": STD},
    ),
    "CosXL": ({"sigma_data": 1.0, "sigma_min": 0.002, "sigma_max": 120.0, "prediction_type": "v_prediction"}, {"scaling_factor": 0.13025}),
}


@pytest.mark.parametrize("model", EDM)
def test_edm_models_generate_the_images_of_diffusers(tmp_path: Path, model: str) -> None:
    scheduler, vae = EDM[model]
    source = tiny_models.save(tmp_path / "source", "sdxl")
    changed(source / "vae/config.json", **vae)
    changed(source / "model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"])
    (source / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "EDMDPMSolverMultistepScheduler", **scheduler}))
    report = export_model(source, tmp_path / "bundle", Options(precision="fp32"))
    assert (report.manifest.defaults.sampler, report.manifest.defaults.schedule) == ("dpm++2m", "karras")
    judge = DiffusionPipeline.from_pretrained(source)
    judge.set_progress_bar_config(disable=True)
    with pipeline.load(tmp_path / "bundle", provider="cpu") as ours:
        defaults, latent = ours.manifest.defaults, ours.manifest.latent
        size = {"width": defaults.width, "height": defaults.height}
        noise = rng("numpy", 11).normal((1, 4, defaults.height // latent.downscale, defaults.width // latent.downscale))
        for sampler, schedule, kind in (
            ("dpm++2m", "karras", EDMDPMSolverMultistepScheduler),
            ("euler", "karras", EDMEulerScheduler),
            ("euler", "exponential", EDMEulerScheduler),
        ):
            image = ours.generate(PROMPT, seed=11, steps=6, guidance=3.0, sampler=sampler, schedule=schedule).images[0]
            judge.scheduler = kind(**scheduler, sigma_schedule=schedule)
            wanted = judge(PROMPT, num_inference_steps=6, guidance_scale=3.0, latents=torch.from_numpy(noise), **size).images[0]
            error = np.mean((np.asarray(image, np.float64) - np.asarray(wanted, np.float64)) ** 2)
            assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 55.0, (sampler, schedule)


def test_a_model_with_the_usual_facts_has_none_of_them_in_its_manifest(sd1_bundle: Path) -> None:
    text = (sd1_bundle / manifests.FILE_NAME).read_text()
    assert "zero_empty_negative" not in text
    assert '"mean"' not in text


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("runwayml/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
        ("/home/alice/models/my-model", "my-model"),
        ("C:\\Users\\alice\\my-model", "my-model"),
        ("../alice/my-model/", "my-model"),
        ("./my-model", "my-model"),
        (None, "folder"),
        ("", "folder"),
    ],
)
def test_the_name_of_a_model_is_a_name_and_never_a_path(said: str | None, name: str) -> None:
    assert model_name(said, "folder") == name


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("latent", "downscale"), 0, "latent.downscale"),
        (("latent", "downscale"), -8, "latent.downscale"),
        (("latent", "scaling"), 0.0, "latent.scaling"),
        (("latent", "scaling"), 1e308, "latent.scaling"),
        (("latent", "shift"), 1e308, "latent.shift"),
        (("latent", "mean"), [0.0], r"latent\.mean has 1 values, expected 4"),
        (("latent", "std"), [1.0, 1.0, 1.0, 0.0], r"latent\.std"),
        (("noise", "beta_start"), -1.0, "noise.beta_start"),
        (("noise", "beta_end"), 2.0, "noise.beta_end"),
        (("noise", "beta_start"), 0.5, "beta_start is above beta_end"),
        (("noise", "train_timesteps"), 400_000_000, "noise.train_timesteps"),
        (("noise", "flow_shift"), 0.0, "noise.flow_shift"),
        (("tokenizers", "tokenizer", "length"), 10**19, "tokenizers"),
        (("tokenizers", "tokenizer", "pad"), 10**30, "tokenizers|number"),
        (("defaults", "steps"), 0, "defaults.steps"),
        (("defaults", "width"), 10**9, "defaults.width"),
        (("components", "unet", "graphs", "full", "grid"), 0, "grid"),
    ],
    ids=str,
)
def test_numbers_of_a_manifest_have_ranges(sd1_bundle: Path, path: tuple[str, ...], value: Any, said: str) -> None:
    facts = json.loads((sd1_bundle / manifests.FILE_NAME).read_text())
    inner = facts
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if path[-1] == "mean":
        facts["latent"]["std"] = [1.0] * 4
    if path[-1] == "std":
        facts["latent"]["mean"] = [0.0] * 4
    with pytest.raises(BundleError, match=said):
        manifests.decode(msgspec.json.encode(facts))
