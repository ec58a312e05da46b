"""Families of Stable Diffusion: which components each has, what its U-Net is for, and what is used by default.

A family is read off the configs alone, so that a distilled or retrained U-Net is nothing special.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from .errors import BundleError
from .manifest import Defaults

Architecture = Literal["sd1", "sd2", "sdxl"]
Task = Literal["text", "inpaint", "instruct", "refine"]
Config = Mapping[str, Any]
"""A JSON file of a diffusers folder."""

PIPELINES = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
    }
)
"""Pipelines of diffusers that can be exported, by class name."""


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    name: str
    architecture: Architecture
    task: Task
    text_encoders: tuple[str, ...]

    @property
    def components(self) -> tuple[str, ...]:
        """Components of a bundle, in the order in which they are exported."""
        return (*self.text_encoders, "vae_encoder", "vae_decoder", "unet")

    @property
    def raw_hidden_states(self) -> bool:
        """Text encoders return raw hidden states (SDXL); otherwise after the final layer norm, as CLIP skip needs them."""
        return self.architecture == "sdxl"


def _families() -> dict[str, Family]:
    found: list[Family] = []
    suffixes: dict[Task, str] = {"text": "", "inpaint": "-inpaint", "instruct": "-pix2pix"}
    for architecture in ("sd1", "sd2", "sdxl"):
        encoders = ("text_encoder", "text_encoder_2") if architecture == "sdxl" else ("text_encoder",)
        found += [Family(architecture + suffix, architecture, task, encoders) for task, suffix in suffixes.items()]
    found.append(Family("sdxl-refiner", "sdxl", "refine", ("text_encoder_2",)))
    return {family.name: family for family in found}


FAMILIES: Mapping[str, Family] = MappingProxyType(_families())


def detect(pipeline: str, components: Mapping[str, tuple[str, str]], unet: Config, latent_channels: int) -> Family:
    """The family of a diffusers folder.

    `pipeline` and `components` come from model_index.json, `unet` is the U-Net's config.

    Raises:
        BundleError: an architecture that is not in `FAMILIES`.
    """
    if pipeline not in PIPELINES:
        raise BundleError(f"model_index.json: {pipeline!r} is not supported; expected one of {', '.join(sorted(PIPELINES))}")
    large = unet.get("addition_embed_type") == "text_time"
    if unet.get("addition_embed_type") not in {None, "text_time"} or unet.get("class_embed_type") or unet.get("encoder_hid_dim_type"):
        raise BundleError(
            "unet/config.json: this U-Net takes inputs that no Stable Diffusion has (Kandinsky, DeepFloyd, unCLIP): not supported"
        )
    architecture: Architecture = "sdxl" if large else "sd2" if unet.get("use_linear_projection") else "sd1"
    if large and components.get("text_encoder", (None, None))[1] is None:
        return FAMILIES["sdxl-refiner"]
    extra = int(unet["in_channels"]) - latent_channels
    by_channels: dict[int, Task] = {0: "text", latent_channels + 1: "inpaint", latent_channels: "instruct"}
    if extra not in by_channels:
        raise BundleError(
            f"unet/config.json: in_channels {unet['in_channels']} with {latent_channels} latent channels: "
            f"expected {latent_channels} (text), {2 * latent_channels} (pix2pix) or {2 * latent_channels + 1} (inpainting)"
        )
    suffix = {"text": "", "inpaint": "-inpaint", "instruct": "-pix2pix"}[by_channels[extra]]
    return FAMILIES[architecture + suffix]


def defaults(family: Family, unet: Config, scheduler: Config, downscale: int, override: Config) -> Defaults:
    """The defaults; `override` (`diffusette.json` of the source) wins."""
    said = unet.get("sample_size") or (128 if family.architecture == "sdxl" else 64)
    height, width = (side * downscale for side in ((said, said) if isinstance(said, int) else said))
    values: dict[str, Any] = {"width": width, "height": height, "steps": 20, "guidance": 7.5, "sampler": "dpm++2m", "schedule": "karras"}
    name = str(scheduler.get("_class_name", ""))
    if family.architecture == "sdxl":
        values |= {"steps": 25, "guidance": 5.0}
    if name.startswith("EDM"):
        values |= {"guidance": 3.0, "schedule": scheduler.get("sigma_schedule") or "karras"}
    if unet.get("time_cond_proj_dim") or name == "LCMScheduler":
        values |= {"steps": 4, "guidance": 8.5 if unet.get("time_cond_proj_dim") else 1.0, "sampler": "lcm", "schedule": "model"}
    elif (
        name.startswith("Euler")
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
    ):
        # SD-Turbo and SDXL-Turbo: distilled for one to four steps without guidance.
        values |= {"steps": 2, "guidance": 1.0, "sampler": "euler_a", "schedule": "model"}
    unknown = override.keys() - values.keys()
    if unknown:
        raise BundleError(f"diffusette.json: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(values)}")
    try:
        return msgspec.convert(values | dict(override), Defaults)
    except msgspec.ValidationError as error:
        raise BundleError(f"diffusette.json or unet/config.json: {error}; expected defaults that a model can have") from error


def latent_statistics(vae: Config) -> dict[str, Any]:
    """`Latent.mean` and `Latent.std` of a VAE's config, if it has both."""
    mean, std = vae.get("latents_mean"), vae.get("latents_std")
    if mean is None or std is None:
        return {}
    try:
        return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    except (TypeError, ValueError) as error:
        raise BundleError(f"vae/config.json: latents_mean or latents_std: {error}; expected one number per channel") from error


def zero_empty_negative(family: Family, index: Config) -> bool | msgspec.UnsetType:
    """`Manifest.zero_empty_negative`, if model_index.json differs from what is usual for the family."""
    said = index.get("force_zeros_for_empty_prompt")
    usual = family.architecture == "sdxl" and family.task != "refine"
    return said if isinstance(said, bool) and usual and said != usual else msgspec.UNSET


def model_name(said: object, otherwise: str) -> str:
    """The name of a model from `_name_or_path`: `owner/name` as it is, and of a path on its maker's machine the last part alone."""
    text = str(said or "").replace("\\", "/").rstrip("/")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.startswith("."):
        return text
    return text.rpartition("/")[2] or otherwise
