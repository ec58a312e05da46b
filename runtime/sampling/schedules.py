"""Schedules: the noise levels of an image's steps.

All values are sigmas as in Karras et al. 2022, `x = x0 + sigma · noise` (`noise_levels`). A schedule is an array of `steps + 1` float64
values, strictly descending, ending at 0 (or, if `final` is sigma_min, at the model's smallest sigma). Intended deviations from diffusers:

* A single step starts at the top for every spacing; diffusers' linspace and leading start at the bottom.
* `karras`, `exponential` and `beta` span the model's whole range, as in k-diffusion, A1111 and diffusers' multistep solvers; diffusers'
  Euler, Heun, LMS and KDPM2 span the range of the spacing, which is the same for linspace.
* Neighbours are never equal: if diffusers repeats the last sigma (`final_sigmas_type` sigma_min after karras) and spends a model call on
  a step of length 0, that step is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import UNSET

from ...models.errors import RequestError
from ...models.manifest import Final, Noise, Spacing
from ..names import key_of, look_up
from ..request import shown
from ..types import Levels
from .noise_levels import alpha_bars, model_sigmas, shifted, sigma_of, sigma_of_flow, timestep_of

__all__ = [
    "SCHEDULES",
    "Grid",
    "Levels",
    "Schedule",
    "alpha_bars",
    "find_schedule",
    "from_sigmas",
    "from_timesteps",
    "sigmas",
    "timestep_of",
]

Grid = Literal["fractional", "integer", "spare", "distilled"]
"""How a diffusers scheduler spaces the model's own timesteps: `fractional` (Euler, Heun, LMS, KDPM2), whole numbers (`integer`: DDIM,
DDPM, PNDM), whole numbers with one to `spare` at the bottom (DPM++, DEIS, UniPC), or the timesteps that the model was `distilled` on,
for every spacing (LCM, TCD)."""


def sigmas(schedule: str, noise: Noise, steps: int, grid: Grid = "fractional", final: Final = "zero") -> Levels:
    """Return `steps + 1` descending noise levels for the schedule of that name, ending at 0.

    With `final` sigma_min they end at the model's smallest sigma, with one value fewer if the schedule already ends there. `grid` is that
    of the sampler (`samplers.Sampler.grid`); only the model's own spacings use it.

    Raises:
        RequestError: unknown name, or fewer than 1 or more than `train_timesteps` steps (`lcm`: 50).
    """
    function = find_schedule(schedule).function
    if not 1 <= steps <= noise.train_timesteps:
        raise RequestError(f"steps: {steps}, expected 1 to {noise.train_timesteps} with this model")
    levels = function(noise, steps, grid)
    if noise.prediction == "flow":
        levels = sigma_of_flow(levels)
    if final == "zero" or noise.prediction == "flow":
        return np.append(levels, 0.0)
    last = float(model_sigmas(noise)[0])
    return np.append(levels, last) if levels[-1] > last * (1.0 + 1e-9) else levels


def from_timesteps(timesteps: Sequence[float], noise: Noise) -> Levels:
    """Return the schedule with these (descending, possibly fractional) timesteps, ending at 0.

    Raises:
        RequestError: empty, not descending, or outside 0 … `train_timesteps` - 1.
    """
    top = noise.train_timesteps - (noise.prediction != "flow")
    falls = all(before > after for before, after in itertools.pairwise(timesteps))
    if not falls or any(not 0 <= step <= top for step in timesteps):
        raise RequestError(f"timesteps: {shown(list(timesteps))}, expected numbers from {top} down to 0, each smaller than the one before")
    return from_sigmas([sigma_of(noise)(step) for step in timesteps])


def from_sigmas(levels: Sequence[float]) -> Levels:
    """Return a custom schedule: descending noise levels in k-diffusion's scale. A missing 0 at the end is added.

    Raises:
        RequestError: empty, not finite, not positive or not strictly descending.
    """
    result = np.asarray(levels, dtype=np.float64)
    if result.ndim == 1 and result.size and result[-1] != 0.0:
        result = np.append(result, 0.0)
    if result.ndim != 1 or result.size < 2 or not np.isfinite(result).all() or (np.diff(result) >= 0.0).any():
        raise RequestError(f"sigmas: {shown(list(levels))}, expected at least one positive number, each smaller than the one before")
    return result


def _model(noise: Noise, steps: int, grid: Grid) -> Levels:
    if noise.prediction == "flow":
        return _flow(noise, steps, grid)
    if noise.edm is not UNSET:
        return _karras(noise, steps, grid)
    if grid == "distilled":
        return _lcm(noise, steps, grid)
    return _spaced(noise.spacing)(noise, steps, grid)


def _spaced(spacing: Spacing) -> Callable[[Noise, int, Grid], Levels]:
    """Return the schedule function for a spacing of training timesteps (Lin et al. 2023, table 2), linear in between as in diffusers."""

    def levels(noise: Noise, steps: int, grid: Grid) -> Levels:
        timesteps = _timesteps(spacing, noise, steps, grid)
        own = model_sigmas(noise)
        result = np.interp(timesteps, np.arange(len(own)), own)
        return _from_sigma(result) if noise.prediction == "flow" else result

    return levels


def _timesteps(spacing: Spacing, noise: Noise, steps: int, grid: Grid) -> Levels:
    count = noise.train_timesteps
    if steps == 1:
        return np.array([count - 1.0])
    if spacing == "trailing":
        return np.rint(count - np.arange(steps) * (count / steps)) - 1.0
    spare = int(grid == "spare" and steps < count)
    if spacing == "linspace":
        result = np.linspace(0.0, count - 1.0, steps + spare)[spare:][::-1]
        return result if grid == "fractional" else np.rint(result)
    stride = count // (steps + spare)
    top = float((steps + spare - 1) * stride)
    return top - np.arange(float(steps)) * stride + min(float(noise.steps_offset), count - 1.0 - top)


def _flow(noise: Noise, steps: int, grid: Grid) -> Levels:
    """Even steps in s, then the shift of Esser et al. 2024 (arXiv:2403.03206, section 5.3.2).

    The lower end is shifted twice, as in FlowMatchEulerDiscreteScheduler. With `spare` the spacing is that of the flow mode of diffusers'
    DPM++: no second shift, and without the bottom (diffusers' UniPC divides the same range slightly differently).
    """
    if noise.prediction != "flow":
        raise RequestError("schedule 'flow' is for flow-matching models; choose model, karras or another schedule")
    if grid == "spare":
        return shifted(1.0 - np.linspace(1.0 / noise.train_timesteps, 1.0, steps + 1)[:-1], noise.flow_shift)
    bottom = float(shifted(np.float64(1.0 / noise.train_timesteps), noise.flow_shift))
    return shifted(np.linspace(1.0, bottom, steps), noise.flow_shift)


def _karras(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Karras et al. 2022, equation 5, rho = 7."""
    low, high = _bounds(noise)
    return np.linspace(math.pow(high, 1 / 7), math.pow(low, 1 / 7), steps) ** 7


def _exponential(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Even steps in log sigma: k-diffusion's exponential, equal to the lambda-uniform steps of Lu et al. 2022 (arXiv:2206.00927)."""
    low, high = _bounds(noise)
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def _beta(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Quantiles of the Beta(0.6, 0.6) distribution: "Beta Sampling is All You Need" (arXiv:2407.12173).

    In sigma, as A1111 and diffusers have it; in timesteps, as the paper has it, for models with zero terminal SNR.
    """
    if noise.zero_terminal_snr:  # in sigma, nearly all steps would lie above 15, where no image forms
        quantiles = _beta_quantiles(1.0 - np.linspace(0.0, 1.0, steps), 0.6) * (noise.train_timesteps - 1)
        return np.interp(quantiles, np.arange(noise.train_timesteps), model_sigmas(noise))
    low, high = _bounds(noise)
    return low + _beta_quantiles(1.0 - np.linspace(0.0, 1.0, steps), 0.6) * (high - low)


def _kl_optimal(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Even steps in arctan sigma: the KL-optimal schedule of Sabour et al. 2024 (arXiv:2404.14507, section 3.2)."""
    low, high = _bounds(noise)
    return np.tan(np.linspace(math.atan(high), math.atan(low), steps))


def _sgm_uniform(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Stability AI's generative-models: even timesteps from the top, without the bottom."""
    sigma = sigma_of(noise)
    result = np.array([sigma(t) for t in np.linspace(noise.train_timesteps - 1.0, 0.0, steps + 1)[:-1].tolist()])
    return _from_sigma(result) if noise.prediction == "flow" else result


def _simple(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """Every n-th sigma of the model, from the top."""
    count = noise.train_timesteps
    result = model_sigmas(noise)[count - 1 - (np.arange(steps) * count / steps).astype(np.int64)]
    return _from_sigma(result) if noise.prediction == "flow" else result


def _align_your_steps(table: Sequence[float]) -> Callable[[Noise, int, Grid], Levels]:
    """Align Your Steps, Sabour et al. 2024 (arXiv:2404.14507): optimized for ten steps, log-linear interpolation for other counts."""
    logs = np.log(table)

    def levels(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
        result = np.exp(np.interp(np.linspace(0.0, 1.0, steps + 1), np.linspace(0.0, 1.0, len(logs)), logs))[:-1]
        return _from_sigma(result) if noise.prediction == "flow" else result

    return levels


def _lcm(noise: Noise, steps: int, grid: Grid) -> Levels:  # noqa: ARG001  (one signature)
    """An even selection of the 50 timesteps that latent consistency models were distilled on (Luo et al. 2023, arXiv:2310.04378)."""
    trained = min(50, noise.train_timesteps)
    if steps > trained:
        raise RequestError(f"steps: {steps}, expected at most {trained} with the schedule lcm; 4 to 8 are usual")
    kept = np.floor(np.linspace(0, trained, steps, endpoint=False)).astype(np.int64)
    result = model_sigmas(noise)[(trained - kept) * (noise.train_timesteps // trained) - 1]
    return _from_sigma(result) if noise.prediction == "flow" else result


def _bounds(noise: Noise) -> tuple[float, float]:
    """Return the smallest and largest level: sigma, or s for a flow model."""
    if noise.prediction == "flow":
        return float(_flow(noise, 2, "fractional")[-1]), 1.0
    own = model_sigmas(noise)
    return float(own[0]), float(own[-1])


def _from_sigma(sigma: Levels) -> Levels:
    return sigma / (1.0 + sigma)


def _beta_quantiles(probability: Levels, shape: float) -> Levels:
    """Return quantiles of the symmetric Beta(shape, shape) distribution, shape < 1.

    Below one half the incomplete beta function is a power series with positive terms (DLMF 8.17.8), convex in u = x**shape, so Newton's
    method from the inverse of the first term descends to the root without overshooting.
    """
    total = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    low = np.minimum(probability, 1.0 - probability)
    u = start = low * shape * total
    factors = np.ones(80)
    for n in range(1, 80):
        factors[n] = factors[n - 1] * (n - shape) / n
    powers = np.arange(80)
    for _ in range(12):
        x = u ** (1.0 / shape)
        series = x[:, None] ** powers
        value = u * (series @ (factors / (powers + shape))) * shape
        u = u - (value - start) / (series @ factors)
    x = u ** (1.0 / shape)
    return np.where(probability <= 0.5, x, 1.0 - x)


@dataclass(frozen=True)
class Schedule:
    """A named schedule. `function` is (noise, steps, grid) → levels without the last one, in s for flow models."""

    name: str
    function: Callable[[Noise, int, Grid], Levels]
    label: str
    """A1111's name in image metadata."""
    aliases: tuple[str, ...] = ()


_AYS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)

SCHEDULES: dict[str, Schedule] = {
    entry.name: entry
    for entry in (
        Schedule("model", _model, "Automatic", ("automatic", "normal", "uniform", "default")),
        Schedule("linspace", _spaced("linspace"), "Uniform"),
        Schedule("leading", _spaced("leading"), "DDIM", ("ddim_uniform", "ddim")),
        Schedule("trailing", _spaced("trailing"), "Trailing"),
        Schedule("karras", _karras, "Karras", ("use_karras_sigmas",)),
        Schedule("exponential", _exponential, "Exponential", ("polyexponential", "use_exponential_sigmas", "use_lu_lambdas")),
        Schedule("beta", _beta, "Beta", ("use_beta_sigmas",)),
        Schedule("kl_optimal", _kl_optimal, "KL Optimal"),
        Schedule("sgm_uniform", _sgm_uniform, "SGM Uniform"),
        Schedule("simple", _simple, "Simple"),
        Schedule("ays", _align_your_steps(_AYS_SD), "Align Your Steps", ("align_your_steps", "ays_sd1", "ays_sd15")),
        Schedule("ays_sdxl", _align_your_steps(_AYS_SDXL), "Align Your Steps", ("align_your_steps_sdxl",)),
        Schedule("lcm", _lcm, "LCM"),
        Schedule("flow", _flow, "Flow", ("use_flow_sigmas",)),
    )
}
"""Every schedule by its canonical name."""


_BY_KEY = {key_of(alias): entry for entry in SCHEDULES.values() for alias in (entry.name, *entry.aliases)}


def find_schedule(name: str, family: str | None = None) -> Schedule:
    """Find a schedule by its name, A1111 label or diffusers option. Case, spaces and dashes do not matter.

    `family` selects one of the two tables of Align Your Steps.

    Raises:
        RequestError: unknown name; the message suggests the nearest one and lists all.
    """
    found = look_up("schedule", name, _BY_KEY, SCHEDULES)
    if found.name == "ays" and family is not None and family.startswith("sdxl"):
        return SCHEDULES["ays_sdxl"]
    return found
