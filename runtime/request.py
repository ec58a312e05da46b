"""What a user asks for, and the job it becomes once everything left open is settled and checked."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.errors import RequestError
from ..models.manifest import Manifest
from . import samplers, schedules
from .randomness import SEED_LIMIT
from .samplers import Sampler

MAX_SIDE = 4096
"""Pixels."""
MAX_COUNT = 1000
MAX_GUIDANCE = 100.0
MAX_LORA = 100.0


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
    schedule: str | None = None
    seed: int | None = None
    """Of the first picture; the next ones count up. None draws one at random."""
    count: int = 1
    init: Image.Image | None = None
    """Draw over this picture (image to image), resized to fit."""
    strength: float = 0.75
    """How much of `init` is drawn anew, 0 to 1."""
    mask: Image.Image | None = None
    """Draw anew only where this is white (inpainting); needs `init`."""
    clip_skip: int = 0
    """Layers of the text encoder left out at its end."""
    rescale: float = 0.0
    """Guidance rescale, 0 to 1 (Lin et al. 2023)."""
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
    schedule: str | None
    seed: int | None
    count: int
    init: Image.Image | None
    strength: float
    mask: Image.Image | None
    clip_skip: int
    rescale: float
    rng: str
    loras: tuple[tuple[Path, float], ...]
    lora_folder: Path | None
    embeddings: tuple[Path, ...]


@dataclass(frozen=True)
class Job:
    """A request with nothing left open."""

    request: Request
    width: int
    height: int
    guidance: float
    sampler: Sampler
    schedule: str
    sigmas: NDArray[np.float64]
    """(steps + 1,), descending; the part that is drawn, which `strength` may have cut off at the front."""
    steps: int
    """As asked for, before `strength`."""
    seeds: tuple[int, ...]


def settle(request: Request, manifest: Manifest) -> Job:
    """`request` checked and completed by the defaults of `manifest`.

    Raises:
        RequestError: a field is out of its range, or a name is unknown; the message has the field and what is expected.
    """
    defaults = manifest.defaults
    width = _side("width", request.width, defaults.width, manifest.latent.downscale)
    height = _side("height", request.height, defaults.height, manifest.latent.downscale)
    steps = _number("steps", defaults.steps if request.steps is None else request.steps, 1, manifest.noise.train_timesteps)
    guidance = _number("guidance", defaults.guidance if request.guidance is None else request.guidance, 0.0, MAX_GUIDANCE)
    count = _number("count", request.count, 1, MAX_COUNT)
    strength = _number("strength", request.strength, 0.0, 1.0)
    _number("rescale", request.rescale, 0.0, 1.0)
    _number("clip_skip", request.clip_skip, 0, 12)
    for path, weight in request.loras:
        _number(f"weight of {path.name}", weight, -MAX_LORA, MAX_LORA)
    if request.mask is not None and request.init is None:
        raise RequestError("a mask was given without a picture: expected init (--init FILE) to draw into")
    sampler = samplers.find(request.sampler or defaults.sampler)
    named = request.schedule or (sampler.schedule if request.sampler else defaults.schedule)
    schedule = schedules.find(named, manifest.family)
    sigmas = schedules.sigmas(schedule.name, manifest.noise, steps, sampler.grid)
    if request.init is not None:
        sigmas = sigmas[len(sigmas) - 1 - max(1, min(steps, math.ceil(steps * strength))) :]
    first = secrets.randbelow(2**32) if request.seed is None else _number("seed", request.seed, 0, SEED_LIMIT - count)
    return Job(
        request=replace(request, seed=first),
        width=width,
        height=height,
        guidance=guidance,
        sampler=sampler,
        schedule=schedule.name,
        sigmas=sigmas,
        steps=steps,
        seeds=tuple(first + index for index in range(count)),
    )


def _side(name: str, asked: int | None, default: int, grain: int) -> int:
    side = default if asked is None else asked
    if not grain <= side <= MAX_SIDE or side % grain:
        near = min(max(round(side / grain) * grain, grain), MAX_SIDE)
        raise RequestError(f"{name}: {side}, but expected a multiple of {grain} from {grain} to {MAX_SIDE}: try {near}")
    return side


N = TypeVar("N", int, float)


def _number(name: str, value: N, low: N, high: N) -> N:
    if not low <= value <= high:  # NaN too
        raise RequestError(f"{name}: {value}, but expected a number from {low} to {high}")
    return value
