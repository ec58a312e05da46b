"""The table of samplers: names as people type them, and what each needs to know about itself.

A sampler is a generator function `(denoise, x, sigmas, rng, *, options…) -> Iterator[Array]`:

* `denoise` maps (x, sigma) to the denoised sample (`denoise.Denoise`);
* `x`, float32, starts at `sigmas[0]` in k-diffusion's scale, `x0 + sigmas[0] · noise`, whether that is all noise or a picture;
* `sigmas` (`schedules.sigmas`, or any strictly descending array) ends in 0, or at a smallest sigma;
* `rng` gives the noise of stochastic samplers;
* it yields the sample after each step, the last of them clean.

Steps can be cut off at the front (image to image), watched, and stopped between two of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..models.errors import RequestError
from ..models.manifest import Final, Noise
from . import samplers_exponential as exponential
from . import samplers_multistep as multistep
from . import samplers_onestep as onestep
from .denoise import Array
from .schedules import SCHEDULES, Grid, key_of, unknown

Option = bool | int | float | str
"""The value of a sampler's option."""
Function = Callable[..., Iterator[Array]]
"""(denoise, x, sigmas, rng, *, options…) → the samples."""


@dataclass(frozen=True)
class Sampler:
    """One entry of the table."""

    name: str
    function: Function
    label: str
    """As A1111 writes it in its metadata."""
    aliases: tuple[str, ...] = ()
    """Other names, diffusers' class first."""
    schedule: str = "model"
    """The schedule taken when none is asked for (A1111's "Automatic")."""
    grid: Grid = "fractional"
    """How diffusers lays the model's own spacing for it: pass it on to `schedules.sigmas`."""
    stochastic: bool = False
    """Whether it draws from `rng` with its default options."""
    evaluations: int = 1
    """Calls of the model a step; the last one of `heun` and others takes fewer, the first of `pndm` one more."""
    unit_variance: bool = False
    """Whether diffusers starts it from noise of the variance that the model saw in training, 1 + sigma²: `start_scale`."""
    options: tuple[str, ...] = ()
    """The keyword arguments of `function`, each with the standard default."""
    final: Final | Literal["model"] = "zero"
    """Where diffusers ends its last step: `model` where the model's config says (`Noise.final`)."""


_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_ANCESTRAL = ("eta", "s_noise")

_TABLE = (
    Sampler("euler", onestep.euler, "Euler", ("EulerDiscreteScheduler",), options=_CHURN),
    Sampler(
        "euler_a", onestep.euler_a, "Euler a", ("EulerAncestralDiscreteScheduler", "euler_ancestral"), stochastic=True, options=_ANCESTRAL
    ),
    Sampler("heun", onestep.heun, "Heun", ("HeunDiscreteScheduler",), evaluations=2, options=_CHURN),
    Sampler("dpm2", onestep.dpm2, "DPM2", ("KDPM2DiscreteScheduler", "dpm_2", "kdpm2"), "karras", evaluations=2, options=_CHURN),
    Sampler(
        "dpm2_a",
        onestep.dpm2_a,
        "DPM2 a",
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_a", "dpm_2_ancestral", "kdpm2_a"),
        "karras",
        stochastic=True,
        evaluations=2,
        options=_ANCESTRAL,
    ),
    Sampler("lms", multistep.lms, "LMS", ("LMSDiscreteScheduler", "linear_multistep"), options=("order",)),
    Sampler("ddim", onestep.ddim, "DDIM", ("DDIMScheduler",), grid="integer", unit_variance=True, options=("eta",), final="model"),
    Sampler(
        "ddpm", onestep.ddpm, "DDPM", ("DDPMScheduler",), grid="integer", stochastic=True, unit_variance=True, options=("large_variance",)
    ),
    Sampler("pndm", multistep.pndm, "PLMS", ("PNDMScheduler", "plms"), grid="integer", unit_variance=True, final="model"),
    Sampler("ipndm", multistep.ipndm, "iPNDM", ("IPNDMScheduler",), grid="integer", unit_variance=True),
    Sampler(
        "deis",
        multistep.deis,
        "DEIS",
        ("DEISMultistepScheduler",),
        grid="spare",
        unit_variance=True,
        options=("order", "lower_order_final"),
        final="sigma_min",
    ),
    Sampler(
        "unipc",
        exponential.unipc,
        "UniPC",
        ("UniPCMultistepScheduler", "uni_pc"),
        grid="spare",
        unit_variance=True,
        options=("order", "variant", "lower_order_final"),
    ),
    Sampler(
        "dpm++2m",
        exponential.dpmpp_2m,
        "DPM++ 2M",
        ("DPMSolverMultistepScheduler", "dpm_solver++"),
        "karras",
        grid="spare",
        unit_variance=True,
        options=("order", "solver", "lower_order_final", "euler_at_final"),
    ),
    Sampler(
        "dpm++2m_sde",
        exponential.dpmpp_2m_sde,
        "DPM++ 2M SDE",
        ("sde-dpmsolver++",),
        "exponential",
        grid="spare",
        stochastic=True,
        unit_variance=True,
        options=("eta", "s_noise", "solver", "lower_order_final", "euler_at_final"),
    ),
    Sampler(
        "dpm++3m_sde",
        exponential.dpmpp_3m_sde,
        "DPM++ 3M SDE",
        (),
        "exponential",
        grid="spare",
        stochastic=True,
        unit_variance=True,
        options=_ANCESTRAL,
    ),
    Sampler(
        "dpm++2s",
        exponential.dpmpp_2s,
        "DPM++ 2S",
        ("DPMSolverSinglestepScheduler",),
        "karras",
        grid="spare",
        unit_variance=True,
        options=("solver",),
    ),
    Sampler(
        "dpm++2s_a",
        onestep.dpmpp_2s_a,
        "DPM++ 2S a",
        ("dpm++2s_ancestral",),
        "karras",
        stochastic=True,
        evaluations=2,
        options=_ANCESTRAL,
    ),
    Sampler(
        "dpm++sde", onestep.dpmpp_sde, "DPM++ SDE", ("DPMSolverSDEScheduler",), "karras", stochastic=True, evaluations=2, options=_ANCESTRAL
    ),
    Sampler("lcm", onestep.lcm, "LCM", ("LCMScheduler",), grid="distilled", stochastic=True, unit_variance=True),
    Sampler(
        "tcd",
        onestep.tcd,
        "TCD",
        ("TCDScheduler",),
        grid="distilled",
        stochastic=True,
        unit_variance=True,
        options=("eta", "noise"),
        final="sigma_min",
    ),
    Sampler(
        "euler_flow", onestep.euler_flow, "Euler Flow", ("FlowMatchEulerDiscreteScheduler", "flow_match_euler"), options=("stochastic",)
    ),
)

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _TABLE}
"""Every sampler by its canonical name."""

_BY_KEY = {key_of(alias): sampler for sampler in _TABLE for alias in (sampler.name, sampler.label, *sampler.aliases)}
_SUFFIXES = {key_of(label): entry.name for entry in SCHEDULES.values() for label in (entry.name, entry.label) if entry.name != "ays_sdxl"}
_OWN_SPACING = {key_of(sampler.aliases[0]) for sampler in _TABLE if sampler.aliases and sampler.aliases[0].endswith("Scheduler")}


def find(name: str) -> Sampler:
    """The sampler of that name: ours, A1111's label or diffusers' class; case, spaces, dashes and underscores do not count.

    A label that names a schedule as well ("DPM++ 2M Karras") gives a sampler with that default schedule; a class of
    diffusers one with the model's own.

    Raises:
        RequestError: there is none; the message lists all and guesses what was meant.
    """
    key = key_of(re.sub(r"^\s*(k_|sample_)", "", name.casefold()))
    if key in _BY_KEY:
        found = _BY_KEY[key]
        return replace(found, schedule="model") if key in _OWN_SPACING else found
    for suffix, schedule in _SUFFIXES.items():
        stem = key.removesuffix(suffix)
        if stem != key and stem in _BY_KEY:
            return replace(_BY_KEY[stem], schedule=schedule)
    raise unknown("sampler", name, SAMPLERS)


def start_scale(sampler: Sampler, noise: Noise, sigma: float) -> float:
    """The factor of the unit noise that a picture starts from at `sigma`, as diffusers has it.

    k-diffusion starts from `sigma · noise`, training from `sqrt(1 + sigma²) · noise` (0.2 % more at sigma 14.6). Diffusers
    takes the latter for samplers of the alpha-bar world, and for Euler and its kin when the model's spacing is leading; flow
    models start from nothing but noise, (1 + sigma) here.
    """
    if noise.prediction == "flow":
        return 1.0 + sigma
    return math.sqrt(1.0 + sigma * sigma) if sampler.unit_variance or noise.spacing == "leading" else sigma


def final_of(sampler: Sampler, noise: Noise) -> Final:
    """Where the schedule of `sampler` ends on a model trained with `noise`: the argument of that name of `schedules.sigmas`."""
    return noise.final if sampler.final == "model" else sampler.final


_RANGES: Mapping[str, tuple[float, float]] = {
    "eta": (0.0, 1.0),
    "s_churn": (0.0, 1000.0),
    "s_tmin": (0.0, 1e6),
    "s_tmax": (0.0, 1e6),
    "s_noise": (0.0, 10.0),
    "order": (1, 3),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"solver": ("midpoint", "heun"), "variant": ("bh1", "bh2")}
"""Options that are neither numbers nor words are true or false."""


def options_for(sampler: Sampler, options: Mapping[str, Option], noise: Noise) -> dict[str, object]:
    """The keyword arguments of `sampler` for a model trained with `noise`: `options`, checked, and what it takes of the model.

    Raises:
        RequestError: it has not such an option, or not with that value; the message lists what it has.
    """
    given = {"noise": noise} if "noise" in sampler.options else {}
    known = [name for name in sampler.options if name not in given]
    for name, value in options.items():
        if name not in known:
            raise RequestError(f"sampler {sampler.name} has no option {name!r}: its options are {', '.join(known) or 'none'}")
        if name in _RANGES:
            low, high = _RANGES[name]
            fits = isinstance(value, int if isinstance(low, int) else (int, float)) and not isinstance(value, bool) and low <= value <= high
            wanted = f"a {'whole ' if isinstance(low, int) else ''}number from {low} to {high}"
        else:
            choices = _CHOICES.get(name, (True, False))
            fits, wanted = type(value) is type(choices[0]) and value in choices, " or ".join(map(str, choices))
        if not fits:
            raise RequestError(f"{name} of sampler {sampler.name}: {value!r}, but expected {wanted}")
    return {**options, **given}
