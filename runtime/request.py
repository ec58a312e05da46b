"""What a user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

from PIL import Image

from .samplers import Option


@dataclass(frozen=True)
class Request:
    """Pictures to draw. What is None is taken from the model's defaults."""

    prompt: str
    negative: str = ""
    width: int | None = None
    """Pixels, a multiple of 8."""
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    """Classifier-free guidance scale; 1 switches it off and halves the work."""
    sampler: str | None = None
    """A name of `samplers.SAMPLERS`, or what A1111 or diffusers call it."""
    sampler_options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    """What the sampler can be told (`samplers.Sampler.options`): eta, s_churn, s_noise, order, …"""
    schedule: str | None = None
    timesteps: tuple[float, ...] = ()
    """A schedule of your own: falling timesteps of the model, the number of steps among them; or `sigmas`."""
    sigmas: tuple[float, ...] = ()
    """A schedule of your own: falling noise levels in k-diffusion's scale; a 0 at the end may be left out."""
    seed: int | None = None
    """Of the first picture; the next ones count up. None draws one at random."""
    count: int = 1
    variation: float = 0.0
    """How far the first noise is turned towards that of `variation_seed`, 0 to 1 (A1111's variation seed strength). Above 0, pictures
    of one request are variations of one: `seed` stays and `variation_seed` counts up."""
    variation_seed: int | None = None
    """None draws one at random."""
    init: Image.Image | None = None
    """Draw over this picture (image to image), resized to fit."""
    strength: float | None = None
    """How much of `init` is drawn anew, 0 to 1; it leaves out steps at the front. By default 0.75, and 1 for models that see the picture
    beside the noise (inpainting, pix2pix)."""
    mask: Image.Image | None = None
    """Draw anew only where this is white (inpainting); needs `init`."""
    mask_blur: float = 4.0
    """Pixels over which what is drawn fades into `init` (standard deviation)."""
    only_masked: bool = False
    """Draw the masked area alone, at the full size, and paste it into `init`, which keeps its size."""
    mask_padding: int = 32
    """Pixels of `init` around that area that the model sees too."""
    hires: float = 1.0
    """Draw at `width` × `height`, then upscale by this factor and draw over that: more pixels than the model was made for."""
    hires_steps: int | None = None
    """Steps drawn at the large size; by default `steps` × `hires_strength`."""
    hires_strength: float | None = None
    """How much is drawn anew there, 0 to 1; by default 0.5, for upscaled latents 0.6."""
    hires_upscaler: str = "lanczos"
    """A name of `hires.UPSCALERS`: lanczos of the picture, or latent, latent_nearest, …"""
    refiner_start: float | None = None
    """How far the base draws before the refiner takes over, as a share of the model's timesteps; by default 0.8 where there is one."""
    decoder: str = "vae"
    """What makes the picture of the latents: "vae", or the bundle's "tiny" decoder, in a fraction of the time."""
    speed: str = "exact"
    """How much work is left out: a name of `speed.SPEEDS`."""
    clip_skip: int = 0
    """Layers of the text encoder left out at its end."""
    rescale: float = 0.0
    """Guidance rescale, 0 to 1 (Lin et al. 2023)."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The share of the steps in which guidance works, as two fractions (Kynkäänniemi et al. 2024); outside the work is halved."""
    image_guidance: float | None = None
    """Models that edit pictures (pix2pix): how strongly the picture holds; by default 1.5."""
    original_size: tuple[int, int] | None = None
    """SDXL: width and height of the picture that the model is told this one was made of; small ones look blurred. By default its own."""
    crop: tuple[int, int] = (0, 0)
    """SDXL: how far from the left and the top that picture is said to be cut; at 0, what is drawn is in the middle."""
    rng: str = "numpy"
    """Whose noise: "numpy", "torch" (as on torch's CPU) or "nv" (as on NVIDIA cards)."""
    loras: tuple[tuple[Path, float], ...] = ()
    """LoRA files and their weights; about 0 to 1 is usual."""
    lora_folder: Path | None = None
    """Where <lora:name:weight> in the prompt looks for name.safetensors; else beside `loras`."""
    embeddings: tuple[Path, ...] = ()
    """Textual inversions; the word of each is its file's name without the ending."""


class Fields(TypedDict, total=False):
    """The fields of `Request` after the prompt, for keyword arguments."""

    negative: str
    width: int | None
    height: int | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    sampler_options: Mapping[str, Option]
    schedule: str | None
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    seed: int | None
    count: int
    variation: float
    variation_seed: int | None
    init: Image.Image | None
    strength: float | None
    mask: Image.Image | None
    mask_blur: float
    only_masked: bool
    mask_padding: int
    hires: float
    hires_steps: int | None
    hires_strength: float | None
    hires_upscaler: str
    refiner_start: float | None
    decoder: str
    speed: str
    clip_skip: int
    rescale: float
    guidance_interval: tuple[float, float]
    image_guidance: float | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int]
    rng: str
    loras: tuple[tuple[Path, float], ...]
    lora_folder: Path | None
    embeddings: tuple[Path, ...]
