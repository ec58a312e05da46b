"""The job that a request becomes once everything left open is settled and checked."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from ..models.families import FAMILIES
from ..models.manifest import Manifest
from . import guidance, hires, pictures, samplers, schedules, speed
from .randomness import KINDS, SEED_LIMIT
from .request import Request
from .samplers import Sampler

MAX_SIDE = 4096
"""Pixels."""
MAX_COUNT = 1000
MAX_GUIDANCE = 100.0
MAX_LORA = 100.0
CUSTOM = "custom"
"""The name of a schedule that came with the request, as `timesteps` or `sigmas`."""
TINY_DECODER = "tiny_decoder"
"""The component that may stand in for the VAE's decoder."""


@dataclass(frozen=True)
class Pass:
    """One way through noise levels at one size."""

    width: int
    height: int
    sigmas: NDArray[np.float64]
    """(steps + 1,), descending; the part that is drawn."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Job:
    """A request with nothing left open."""

    request: Request
    """As it was asked, its open fields filled in."""
    passes: tuple[Pass, ...]
    """One; with `hires` two."""
    guidance: float
    interval: tuple[float, float]
    """`guidance.Guidance.interval`."""
    sampler: Sampler
    options: Mapping[str, object]
    """Keyword arguments of the sampler."""
    schedule: str
    steps: int
    """As asked for, before `strength`."""
    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...]


def settle(request: Request, manifest: Manifest, *, refines: bool = False) -> Job:
    """`request` checked and completed by the defaults of `manifest`; `refines`: a refiner is there.

    Raises:
        RequestError: a field is out of its range, or a name is unknown; the message has the field and what is expected.
    """
    defaults = manifest.defaults
    _check(request, manifest, refines=refines)
    request = _completed(request, manifest, refines=refines)
    sampler = samplers.find(request.sampler or defaults.sampler)
    named = request.schedule or (sampler.schedule if request.sampler else defaults.schedule)
    schedule = schedules.find(named, manifest.family)

    def levels(count: int) -> NDArray[np.float64]:
        return schedules.sigmas(schedule.name, manifest.noise, count, sampler.grid, samplers.final_of(sampler, manifest.noise))

    sigmas, name = _own(request, manifest), CUSTOM
    if sigmas is None:
        sigmas, name = levels(defaults.steps if request.steps is None else request.steps), schedule.name
    steps = len(sigmas) - 1 if request.steps is None else request.steps
    assert request.width is not None
    assert request.height is not None
    passes = [
        Pass(request.width, request.height, sigmas if request.strength is None else _last(sigmas, math.ceil(steps * request.strength)))
    ]
    if request.hires > 1:
        passes.append(_larger(request, passes[0], steps, levels, manifest))
        request = replace(request, hires_steps=passes[1].steps)
    still, seed, variation_seed = request.variation > 0, request.seed, request.variation_seed
    assert seed is not None
    assert variation_seed is not None
    return Job(
        request=request,
        passes=tuple(passes),
        guidance=defaults.guidance if request.guidance is None else request.guidance,
        interval=guidance.step_interval(passes[0].sigmas, *request.guidance_interval),
        sampler=sampler,
        options=samplers.options_for(sampler, request.sampler_options, manifest.noise),
        schedule=name,
        steps=steps,
        seeds=tuple(seed + (0 if still else index) for index in range(request.count)),
        variation_seeds=tuple(variation_seed + index for index in range(request.count)),
    )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("count", 1, MAX_COUNT),
    ("strength", 0.0, 1.0),
    ("guidance", 0.0, MAX_GUIDANCE),
    ("image_guidance", 0.0, MAX_GUIDANCE),
    ("rescale", 0.0, 1.0),
    ("clip_skip", 0, 12),
    ("variation", 0.0, 1.0),
    ("mask_blur", 0.0, 256.0),
    ("mask_padding", 0, MAX_SIDE),
    ("hires", 1.0, 8.0),
    ("hires_strength", 0.0, 1.0),
    ("refiner_start", 0.0, 1.0),
)
"""Fields that are numbers, and their ranges, whole where the numbers have to be."""


def _check_numbers(request: Request, manifest: Manifest) -> None:
    """Each number by itself."""
    for name, low, high in _RANGES:
        if getattr(request, name) is not None:
            _number(name, getattr(request, name), low, high)
    for name in ("steps", "hires_steps"):
        if getattr(request, name) is not None:
            _number(name, getattr(request, name), 1, manifest.noise.train_timesteps)
    for name in ("seed", "variation_seed"):
        if getattr(request, name) is not None:
            _number(name, getattr(request, name), 0, SEED_LIMIT - request.count)
    for name, numbers, low in (("original_size", request.original_size or (), 1), ("crop", request.crop, 0)):
        for number in numbers:
            _number(name, number, low, MAX_SIDE)
    for path, weight in request.loras:
        _number(f"weight of {path.name}", weight, -MAX_LORA, MAX_LORA)


def _check(request: Request, manifest: Manifest, *, refines: bool) -> None:
    """What needs no more than the request and the manifest to be found wrong."""
    _check_numbers(request, manifest)
    speed.find(request.speed)
    family = FAMILIES[manifest.family]
    for wrong, message in (
        (request.rng not in KINDS, f"random generator {request.rng!r} is not known: choose one of {', '.join(KINDS)}"),
        (request.mask is not None and request.init is None, "a mask was given without a picture: expected init (--init FILE) to draw into"),
        (request.only_masked and request.mask is None, "only_masked was asked for without a mask: expected mask (--mask FILE)"),
        (
            request.hires > 1 and request.init is not None,
            "hires draws twice from words alone, but init was given: to draw over it at a larger size, ask for that width and height",
        ),
        (
            request.image_guidance is not None and family.task != "instruct",
            f"image_guidance: {manifest.source.name} does not edit pictures by instruction: expected a pix2pix model, or no image_guidance",
        ),
        (
            (request.original_size is not None or request.crop != (0, 0)) and family.architecture != "sdxl",
            f"original_size, crop: {manifest.source.name} is told of no sizes: expected a model of SDXL's kind, or neither",
        ),
        (
            request.refiner_start is not None and not refines,
            f"refiner_start: {request.refiner_start}, but there is no refiner: open one with refiner= (--refiner DIR)",
        ),
        (
            request.decoder not in {"vae", "tiny"} or (request.decoder == "tiny" and TINY_DECODER not in manifest.components),
            f"decoder: {request.decoder!r}, but this bundle has {'vae, tiny' if TINY_DECODER in manifest.components else 'vae alone'}",
        ),
    ):
        if wrong:
            raise RequestError(message)


def _completed(request: Request, manifest: Manifest, *, refines: bool) -> Request:
    """`request` with what can be filled in by itself."""
    grain, defaults = manifest.latent.downscale, manifest.defaults
    strength = request.strength
    if request.init is None:
        strength = None
    elif strength is None:
        strength = 1.0 if FAMILIES[manifest.family].task in {"inpaint", "instruct"} else 0.75
    upscaler = hires.find(request.hires_upscaler)
    return replace(
        request,
        width=_side("width", request.width, defaults.width, grain),
        height=_side("height", request.height, defaults.height, grain),
        seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
        variation_seed=secrets.randbelow(2**32) if request.variation_seed is None else request.variation_seed,
        strength=strength,
        timesteps=tuple(map(float, request.timesteps)),
        sigmas=tuple(map(float, request.sigmas)),
        hires_strength=upscaler.strength if request.hires_strength is None else request.hires_strength,
        hires_upscaler=upscaler.name,
        refiner_start=0.8 if refines and request.refiner_start is None else request.refiner_start,
    )


def _own(request: Request, manifest: Manifest) -> NDArray[np.float64] | None:
    """The schedule that came with the request; None if none did."""
    given = [name for name in ("timesteps", "sigmas", "schedule") if getattr(request, name)]
    if not request.timesteps and not request.sigmas:
        return None
    if len(given) > 1 or request.hires > 1:
        raise RequestError(f"{given[0]}: cannot be used with {' or '.join([*given[1:], 'hires'])}: expected one schedule, for one pass")
    sigmas = schedules.from_timesteps(request.timesteps, manifest.noise) if request.timesteps else schedules.from_sigmas(request.sigmas)
    if len(sigmas) - 1 > manifest.noise.train_timesteps or request.steps not in {None, len(sigmas) - 1}:
        raise RequestError(f"{given[0]}: these make {len(sigmas) - 1} steps, but steps is {request.steps}: leave steps out")
    return sigmas


def _larger(request: Request, first: Pass, steps: int, levels: Callable[[int], NDArray[np.float64]], manifest: Manifest) -> Pass:
    """The second pass of `hires`: its steps are the last ones of a schedule that would begin at pure noise."""
    grain, strength = manifest.latent.downscale, request.hires_strength or 0.0
    width, height = pictures.snap(first.width * request.hires, first.height * request.hires, grain)
    for name, side in (("width", width), ("height", height)):
        _side(f"{name} after hires", side, side, grain)
    count = request.hires_steps or max(1, math.ceil(steps * strength))
    whole = min(max(count, round(count / max(strength, 0.01))), manifest.noise.train_timesteps)
    return Pass(width, height, _last(levels(whole), count))


def _last(sigmas: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The last `steps` steps, at least one."""
    return sigmas[max(0, len(sigmas) - 1 - max(1, steps)) :]


def _side(name: str, asked: int | None, default: int, grain: int) -> int:
    side = default if asked is None else asked
    if not grain <= side <= MAX_SIDE or side % grain:
        near = min(max(round(side / grain) * grain, grain), MAX_SIDE)
        raise RequestError(f"{name}: {side}, but expected a multiple of {grain} from {grain} to {MAX_SIDE}: try {near}")
    return side


def _number(name: str, value: float, low: float, high: float) -> None:
    whole = isinstance(low, int)
    if not low <= value <= high or (whole and not isinstance(value, int)):  # NaN too
        raise RequestError(f"{name}: {value}, but expected a {'whole ' if whole else ''}number from {low} to {high}")
