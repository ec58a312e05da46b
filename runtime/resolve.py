"""A validated request with every default filled in, ready to run."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from ..models.families import FAMILIES
from ..models.manifest import Manifest, Noise
from .images import hires, image_io
from .normalize import NormalizedRequest, normalize
from .request import MAX_LORA, MAX_SEED, MAX_SIDE, ONLY_WITH, Request, is_default, number_of
from .sampling import guidance, samplers, schedules
from .sampling.noise_levels import sigma_of, timestep_of
from .sampling.samplers import Sampler

STRENGTH = 0.75
"""The default of `Request.strength` for text-to-image models."""
REFINER_START = 0.8
"""The default of `Request.refiner_start`."""
CUSTOM = "custom"
"""The name of a schedule that the request gives as `timesteps` or `sigmas`."""
TINY_DECODER = "tiny_decoder"
"""The component that can replace the VAE's decoder."""


@dataclass(frozen=True)
class Pass:
    """One run through a schedule at one size."""

    width: int
    height: int
    sigmas: NDArray[np.float64]
    """(steps + 1,), descending; only the steps that run."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest(NormalizedRequest):
    """A request with nothing left open: the fields of `Request`, none of them at "the model's default", and what follows from them.

    `resolve` sets every field; the defaults only satisfy the inheritance.
    """

    width: int = 0
    height: int = 0
    steps: int = 0
    """As requested, before `strength` shortens the schedule."""
    guidance: float = 0.0
    sampler: str = ""
    """Canonical name."""
    schedule: str = ""
    """Canonical name, or `CUSTOM`."""
    seed: int = 0
    variation_seed: int = 0
    hires_strength: float = 0.0
    solver: Sampler
    """The entry of `sampler` in the table of samplers."""
    solver_options: Mapping[str, object]
    """Keyword arguments of the solver."""
    passes: tuple[Pass, ...]
    """One; with `hires` two."""
    guided_sigmas: tuple[float, float]
    """`guidance.Guidance.interval`."""
    seeds: tuple[int, ...]
    """One for each image, like `variation_seeds`."""
    variation_seeds: tuple[int, ...]
    notes: tuple[str, ...]
    """What was decided for the user."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images."""
        return self.init.size if self.only_masked and self.init is not None else (self.passes[-1].width, self.passes[-1].height)


def resolve(asked: Request, manifest: Manifest, *, refines: bool = False) -> ResolvedRequest:
    """Check `asked` and fill in the defaults of `manifest`; `refines` says that a refiner is open.

    Raises:
        RequestError: a field is out of bounds, or a name is unknown; the message names the field and what it expects.
    """
    request = normalize(asked)
    _check(request, manifest, refines=refines)
    defaults = manifest.defaults
    solver = samplers.find_sampler(request.sampler or defaults.sampler)
    levels = _levels(request, manifest, solver)
    upscaler = hires.find_upscaler(request.hires_upscaler)
    hires_strength = upscaler.strength if request.hires_strength is None else request.hires_strength
    custom = _custom_schedule(request, manifest)
    sigmas = levels.sigmas(request.steps or defaults.steps) if custom is None else custom
    steps, strength = request.steps or len(sigmas) - 1, _strength(request, manifest)
    width, height, notes = _size(request, manifest)
    passes = [Pass(width, height, sigmas if strength is None else _end(sigmas, steps * strength, manifest.noise))]
    if request.hires > 1:
        passes.append(_second_pass(request, passes[0], steps, hires_strength, levels))
    seed, variation_seed = _seed(request.seed), _seed(request.variation_seed)
    resolved: dict[str, Any] = {
        "width": width,
        "height": height,
        "steps": steps,
        "guidance": defaults.guidance if request.guidance is None else request.guidance,
        "sampler": solver.name,
        "schedule": levels.schedule if custom is None else CUSTOM,
        "seed": seed,
        "variation_seed": variation_seed,
        "strength": strength,
        "hires_steps": passes[-1].steps if request.hires > 1 else request.hires_steps,
        "hires_strength": hires_strength,
        "hires_upscaler": upscaler.name,
        "refiner_start": REFINER_START if refines and request.refiner_start is None else request.refiner_start,
    }
    return ResolvedRequest(
        **({field.name: getattr(request, field.name) for field in dataclasses.fields(Request)} | resolved),
        solver=solver,
        solver_options=samplers.options_for(solver, request.sampler_options, manifest.noise),
        passes=tuple(passes),
        guided_sigmas=guidance.step_interval(passes[0].sigmas, *request.guidance_interval),
        notes=(*notes, *_mask_notes(request), *_unused(request, resolved["guidance"])),
        seeds=tuple(seed + (0 if request.variation > 0 else index) for index in range(request.count)),
        variation_seeds=tuple(variation_seed + index for index in range(request.count)),
    )


class _Levels(NamedTuple):
    """Noise levels of the request's schedule and sampler, for any number of steps."""

    manifest: Manifest
    schedule: str
    sigmas: Callable[[int], NDArray[np.float64]]


def _levels(request: NormalizedRequest, manifest: Manifest, solver: Sampler) -> _Levels:
    named = request.schedule or (solver.schedule if request.sampler else manifest.defaults.schedule)
    schedule = schedules.find_schedule(named, manifest.family).name
    final = samplers.final_of(solver, manifest.noise)

    def sigmas(count: int) -> NDArray[np.float64]:
        return schedules.sigmas(schedule, manifest.noise, count, solver.grid, final)

    return _Levels(manifest, schedule, sigmas)


def _strength(request: NormalizedRequest, manifest: Manifest) -> float | None:
    """None for text to image."""
    if request.init is None or request.strength is not None:
        return None if request.init is None else request.strength
    return 1.0 if FAMILIES[manifest.family].task in {"inpaint", "instruct"} else STRENGTH


def _size(request: NormalizedRequest, manifest: Manifest) -> tuple[int, int, tuple[str, ...]]:
    """Width, height and notes. By default the model's size; with an init image, that image's shape, at most at the model's number of
    pixels.
    """
    defaults, grain, init = manifest.defaults, manifest.latent.downscale, request.init
    width, height = request.width, request.height
    if init is None or request.only_masked or (width is not None and height is not None):
        return _side("width", width or defaults.width, manifest), _side("height", height or defaults.height, manifest), ()
    shape = init.width / init.height
    if width is not None:
        return _side("width", width, manifest), _side("height", image_io.snap(1, width / shape, grain)[1], manifest), ()
    if height is not None:
        return _side("width", image_io.snap(height * shape, 1, grain)[0], manifest), _side("height", height, manifest), ()
    scale = min(1.0, math.sqrt(defaults.width * defaults.height / (init.width * init.height)))
    wide, high = (
        min(max(side, grain), MAX_SIDE // grain * grain) for side in image_io.snap(init.width * scale, init.height * scale, grain)
    )
    smaller = scale < 1 and (wide, high) != init.size
    said = f"the init image is {init.width} × {init.height}, so {wide} × {high} is generated: about the model's number of pixels"
    return wide, high, (f"{said}; set width and height for another size",) if smaller else ()


def _unused(request: NormalizedRequest, scale: float) -> list[str]:
    """Notes on what was asked for and has no effect beside the rest of the request, whose guidance is `scale`."""
    found = [
        f"{name}: has no effect without {other}"
        for name, other in ONLY_WITH.items()
        if not is_default(request, name) and is_default(request, other) and name != "only_masked"
    ]
    guided = () if scale > 1 else ("negative", "rescale", "guidance_interval")
    return [*found, *(f"{name}: has no effect at guidance {scale:g}, which is off" for name in guided if not is_default(request, name))]


def _mask_notes(request: NormalizedRequest) -> list[str]:
    """Notes on how the mask was understood."""
    init, mask = request.init, request.mask
    if init is None or mask is None:
        return []
    how, shapes = image_io.how_read(mask), (init.width / init.height, mask.width / mask.height)
    notes = [f"mask: {how}; save it without transparency to regenerate its white areas instead"] if how else []
    if mask.getextrema() == (0, 0):
        notes.append("mask: nothing in it is white, so nothing of the init image is regenerated")
    if max(shapes) > 1.02 * min(shapes):
        notes.append(f"mask: {mask.width} × {mask.height} was stretched to the shape of the init image, {init.width} × {init.height}")
    return notes


def _seed(seed: int | None) -> int:
    return secrets.randbelow(2**32) if seed is None else seed


def _check(request: NormalizedRequest, manifest: Manifest, *, refines: bool) -> None:
    """Refuse what the request and the manifest alone show to be wrong."""
    for name in ("steps", "hires_steps"):
        if getattr(request, name) is not None:
            number_of(name, getattr(request, name), int, 1, manifest.noise.train_timesteps)
    for name in ("seed", "variation_seed"):
        if getattr(request, name) is not None:
            number_of(name, getattr(request, name), int, 0, MAX_SEED + 1 - request.count)
    for path, weight in request.loras:
        number_of(f"weight of {path.name}", weight, float, -MAX_LORA, MAX_LORA)
    family, model = FAMILIES[manifest.family], manifest.source.name
    for wrong, message in (
        (request.mask is not None and request.init is None, "mask: there is no image to inpaint; add init (--init FILE)"),
        (request.only_masked and request.mask is None, "only_masked: there is no mask; add mask (--mask FILE)"),
        (
            request.hires > 1 and request.init is not None,
            "hires: cannot be combined with init; for image to image at a larger size, set width and height",
        ),
        (
            request.image_guidance is not None and family.task != "instruct",
            f"image_guidance: {model} does not edit images by instruction; use a pix2pix model, or omit image_guidance",
        ),
        (
            (request.original_size is not None or request.crop != (0, 0)) and family.architecture != "sdxl",
            f"original_size, crop: {model} does not use size conditioning; omit them, or use an SDXL model",
        ),
        (
            request.refiner_start is not None and not refines,
            f"refiner_start: {request.refiner_start}, but no refiner is open; open one with refiner= (--refiner DIR)",
        ),
        (
            request.decoder == "tiny" and TINY_DECODER not in manifest.components,
            f"decoder: 'tiny', but the bundle of {model} has no tiny decoder; use vae, or export with --tiny-vae",
        ),
    ):
        if wrong:
            raise RequestError(message)


def _custom_schedule(request: NormalizedRequest, manifest: Manifest) -> NDArray[np.float64] | None:
    """The schedule that the request itself gives, or None."""
    given = [name for name in ("timesteps", "sigmas", "schedule") if getattr(request, name)]
    if not request.timesteps and not request.sigmas:
        return None
    if len(given) > 1 or request.hires > 1:
        raise RequestError(f"{given[0]}: cannot be combined with {' or '.join([*given[1:], 'hires'])}; give one schedule, for one pass")
    sigmas = schedules.from_timesteps(request.timesteps, manifest.noise) if request.timesteps else schedules.from_sigmas(request.sigmas)
    if len(sigmas) - 1 > manifest.noise.train_timesteps or request.steps not in {None, len(sigmas) - 1}:
        raise RequestError(f"{given[0]}: they make {len(sigmas) - 1} steps, but steps is {request.steps}; omit steps")
    return sigmas


def _second_pass(request: NormalizedRequest, first: Pass, steps: int, strength: float, levels: _Levels) -> Pass:
    """The second pass of hires: the last steps of a schedule that would start at pure noise."""
    manifest = levels.manifest
    width, height = image_io.snap(first.width * request.hires, first.height * request.hires, manifest.latent.downscale)
    for name, side in (("width", width), ("height", height)):
        _side(f"{name} after hires", side, manifest)
    count = request.hires_steps or max(1, math.ceil(steps * strength))
    whole = min(max(count, round(count / max(strength, 0.01))), manifest.noise.train_timesteps)
    return Pass(width, height, _last(levels.sigmas(whole), count))


def _end(sigmas: NDArray[np.float64], steps: float, noise: Noise) -> NDArray[np.float64]:
    """The last `steps` steps, rounded down as in diffusers. Less than one step is one step from that share of its timestep, so that a low
    strength changes little however few steps there are.
    """
    if steps >= 1:
        return _last(sigmas, int(steps))
    start = sigma_of(noise)(steps * timestep_of(noise)(float(sigmas[-2])))
    return np.array([max(start, sigmas[-1] * 1.001), sigmas[-1]])


def _last(sigmas: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The last `steps` steps, at least one."""
    return sigmas[max(0, len(sigmas) - 1 - max(1, steps)) :]


def _side(name: str, side: int, manifest: Manifest) -> int:
    """`side`, if it is a multiple of the latent's grain within bounds."""
    grain = manifest.latent.downscale
    if not grain <= side <= MAX_SIDE or side % grain:
        near = min(max(round(side / grain) * grain, grain), MAX_SIDE)
        raise RequestError(f"{name}: {side}, expected a multiple of {grain} from {grain} to {MAX_SIDE}; try {near}")
    return side
