"""The table of samplers: their names, functions, options and defaults.

A sampler is a generator function `(denoise, x, sigmas, rng, *, options…) -> Iterator[Array]`:

* `denoise` maps (x, sigma) to the denoised sample (`types.Denoise`);
* `x`, float32, starts at `sigmas[0]` in k-diffusion's scale, `x0 + sigmas[0] · noise`, for text to image and image to image;
* `sigmas` (`schedules.sigmas`, or any strictly descending array) ends at 0 or at the model's smallest sigma;
* `rng` is the source of noise for stochastic samplers;
* it yields the sample after each step; the last sample is free of noise.

A caller can skip the first steps (image to image), watch each step, and stop between two steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from ...models.errors import RequestError
from ...models.manifest import Final, Noise
from ..names import key_of, unknown
from ..request import Option, number_of, shown
from ..types import Array
from . import exponential, multistep, single_step
from .schedules import SCHEDULES, Grid

Function = Callable[..., Iterator[Array]]
"""(denoise, x, sigmas, rng, *, options…) → the sample after each step."""


@dataclass(frozen=True)
class Sampler:
    """One entry of the table."""

    name: str
    function: Function
    label: str
    """A1111's name in image metadata."""
    aliases: tuple[str, ...] = ()
    """Other names; the diffusers class comes first."""
    schedule: str = "model"
    """The default schedule (A1111's "Automatic")."""
    grid: Grid = "fractional"
    """How diffusers spaces the timesteps of the model's own schedule for it: an argument of `schedules.sigmas`."""
    stochastic: bool = False
    """Whether it uses `rng` with its default options."""
    evaluations: int = 1
    """Model calls per step. The last step of `heun` and others takes fewer, the first of `pndm` one more."""
    unit_variance: bool = False
    """Whether diffusers starts it from noise with the variance of training, 1 + sigma²; see `start_scale`."""
    options: tuple[str, ...] = ()
    """The keyword arguments of `function`; their defaults are the standard ones."""
    final: Final | Literal["model"] = "zero"
    """Where diffusers ends the last step; `model` follows the model's config (`Noise.final`)."""


_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_ANCESTRAL = ("eta", "s_noise")

_TABLE = (
    Sampler(
        "euler",
        single_step.euler,
        "Euler",
        (
            "EulerDiscreteScheduler",
            "EDMEulerScheduler",
        ),
        options=_CHURN,
    ),
    Sampler(
        "euler_a",
        single_step.euler_a,
        "Euler a",
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        stochastic=True,
        options=_ANCESTRAL,
    ),
    Sampler("heun", single_step.heun, "Heun", ("HeunDiscreteScheduler",), evaluations=2, options=_CHURN),
    Sampler("dpm2", single_step.dpm2, "DPM2", ("KDPM2DiscreteScheduler", "dpm_2", "kdpm2"), "karras", evaluations=2, options=_CHURN),
    Sampler(
        "dpm2_a",
        single_step.dpm2_a,
        "DPM2 a",
        ("KDPM2AncestralDiscreteScheduler", "dpm_2_a", "dpm_2_ancestral", "kdpm2_a"),
        "karras",
        stochastic=True,
        evaluations=2,
        options=_ANCESTRAL,
    ),
    Sampler("lms", multistep.lms, "LMS", ("LMSDiscreteScheduler", "linear_multistep"), options=("order",)),
    Sampler("ddim", single_step.ddim, "DDIM", ("DDIMScheduler",), grid="integer", unit_variance=True, options=("eta",), final="model"),
    Sampler(
        "ddpm",
        single_step.ddpm,
        "DDPM",
        ("DDPMScheduler",),
        grid="integer",
        stochastic=True,
        unit_variance=True,
        options=("large_variance",),
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
        ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "dpm_solver++"),
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
        "dpm++2m_sde_heun",
        exponential.dpmpp_2m_sde_heun,
        "DPM++ 2M SDE Heun",
        (),
        "exponential",
        grid="spare",
        stochastic=True,
        unit_variance=True,
        options=_ANCESTRAL,
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
        single_step.dpmpp_2s_a,
        "DPM++ 2S a",
        ("dpm++2s_ancestral",),
        "karras",
        stochastic=True,
        evaluations=2,
        options=_ANCESTRAL,
    ),
    Sampler(
        "dpm++sde",
        single_step.dpmpp_sde,
        "DPM++ SDE",
        ("DPMSolverSDEScheduler",),
        "karras",
        stochastic=True,
        evaluations=2,
        options=_ANCESTRAL,
    ),
    Sampler("lcm", single_step.lcm, "LCM", ("LCMScheduler",), grid="distilled", stochastic=True, unit_variance=True),
    Sampler(
        "tcd",
        single_step.tcd,
        "TCD",
        ("TCDScheduler",),
        grid="distilled",
        stochastic=True,
        unit_variance=True,
        options=("eta", "noise"),
        final="sigma_min",
    ),
    Sampler(
        "euler_flow", single_step.euler_flow, "Euler Flow", ("FlowMatchEulerDiscreteScheduler", "flow_match_euler"), options=("stochastic",)
    ),
)

SAMPLERS: dict[str, Sampler] = {sampler.name: sampler for sampler in _TABLE}
"""Every sampler by its canonical name."""

_BY_KEY = {key_of(alias): sampler for sampler in _TABLE for alias in (sampler.name, sampler.label, *sampler.aliases)}
_SUFFIXES = {key_of(label): entry.name for entry in SCHEDULES.values() for label in (entry.name, entry.label) if entry.name != "ays_sdxl"}
_OWN_SPACING = {key_of(sampler.aliases[0]) for sampler in _TABLE if sampler.aliases and sampler.aliases[0].endswith("Scheduler")}


def find_sampler(name: str) -> Sampler:
    """Find a sampler by its name, A1111 label or diffusers class. Case, spaces, dashes and underscores do not matter.

    A label that includes a schedule ("DPM++ 2M Karras") returns the sampler with that default schedule; a diffusers class returns it with
    the model's own schedule.

    Raises:
        RequestError: unknown name; the message suggests the nearest one and lists all.
    """
    key = key_of(re.sub(r"^\s*(k_|sample_)", "", name.casefold()))
    if key in _BY_KEY:
        found = _BY_KEY[key]
        return replace(found, schedule="model") if key in _OWN_SPACING else found
    for suffix, schedule in _SUFFIXES.items():
        base = key.removesuffix(suffix)
        if base != key and base in _BY_KEY:
            return replace(_BY_KEY[base], schedule=schedule)
    labels = [f"{one.label}{ending}" for one in SAMPLERS.values() for ending in ("", " Karras", " Exponential")]
    raise unknown("sampler", name, SAMPLERS, labels)


def start_scale(sampler: Sampler, noise: Noise, sigma: float) -> float:
    """Return the scale of the initial unit noise at `sigma`, as in diffusers.

    k-diffusion starts from `sigma · noise`, training from `sqrt(1 + sigma²) · noise` (0.2 % more at sigma 14.6). Diffusers uses the latter
    for samplers defined by alpha-bars, and for Euler and similar samplers if the model's spacing is leading. Flow models start from pure
    noise, a scale of 1 + sigma.
    """
    if noise.prediction == "flow":
        return 1.0 + sigma
    return math.sqrt(1.0 + sigma * sigma) if sampler.unit_variance or noise.spacing == "leading" else sigma


def final_of(sampler: Sampler, noise: Noise) -> Final:
    """Return where the schedule of `sampler` ends for a model trained with `noise`: the argument `final` of `schedules.sigmas`."""
    return noise.final if sampler.final == "model" else sampler.final


_RANGES: Mapping[str, tuple[int, int] | tuple[float, float]] = {
    "eta": (0.0, 1.0),
    "s_churn": (0.0, 1000.0),
    "s_tmin": (0.0, 1e6),
    "s_tmax": (0.0, 1e6),
    "s_noise": (0.0, 10.0),
    "order": (1, 3),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"solver": ("midpoint", "heun"), "variant": ("bh1", "bh2")}
"""All other options are true or false."""


def options_for(sampler: Sampler, options: Mapping[str, Option], noise: Noise) -> dict[str, object]:
    """Check `options` and return the keyword arguments of `sampler` for a model trained with `noise`.

    Raises:
        RequestError: unknown option or invalid value; the message lists what the sampler accepts.
    """
    given: dict[str, object] = {"noise": noise} if "noise" in sampler.options else {}
    known = [name for name in sampler.options if name != "noise"]
    for name, value in options.items():
        if name not in known:
            raise RequestError(f"sampler {sampler.name} has no option {shown(name)}; its options are: {', '.join(known) or 'none'}")
        where = f"{name} of sampler {sampler.name}"
        if name in _RANGES:
            low, high = _RANGES[name]
            given[name] = number_of(where, value, type(low), low, high)
            continue
        choices = _CHOICES.get(name, (True, False))
        plain: object = cast("Any", value).item() if isinstance(cast("object", value), np.generic) else value
        if type(plain) is not type(choices[0]) or plain not in choices:
            raise RequestError(f"{where}: {shown(value)}, expected {' or '.join(map(str, choices))}")
        given[name] = plain
    return given
