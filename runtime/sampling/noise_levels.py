"""The noise levels that a model was trained on, and their timesteps.

Sigmas are those of Karras et al. 2022 (arXiv:2206.00364), `x = x0 + sigma · noise`. A model trained with alpha-bars has
`sigma = sqrt((1 - alpha_bar) / alpha_bar)`; a flow-matching model, whose samples are `(1 - s) · x0 + s · noise`, has
`sigma = s / (1 - s)`, so the same samplers work for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from msgspec import UNSET

from ...models.errors import BundleError
from ...models.manifest import Noise
from ..types import Levels

_RHO = 7
_FLOW_TOP = 1.0 - 1e-6  # s = 1 is pure noise with an infinite sigma; diffusers' UniPC uses the same limit


@lru_cache(maxsize=16)
def alpha_bars(noise: Noise) -> Levels:
    """Return alpha-bar, the share of the signal's variance, at each training timestep: (train_timesteps,), float64, descending, read-only.

    `squaredcos_cap_v2` is Nichol & Dhariwal 2021 (arXiv:2102.09672). With `zero_terminal_snr` the betas are rescaled as in
    Lin et al. 2023 (arXiv:2305.08891, algorithm 1), but the last value is 2⁻²⁴ instead of 0, as in diffusers' Euler and DPM++, so that
    sigma stays finite (4096). For a flow model, the values are those with the same sigmas; for an EDM model, those of the sigmas of
    Karras et al. 2022, equation 5, in as many steps.

    Raises:
        BundleError: betas that leave no signal, so that a sigma would be infinite.
    """
    with np.errstate(all="ignore"):  # reported below
        result = _alpha_bars(noise)
    if not (result > 0.0).all() or not np.isfinite(result).all():
        betas = f"{noise.betas} betas from {noise.beta_start:g} to {noise.beta_end:g} over {noise.train_timesteps} timesteps"
        raise BundleError(f"noise: {betas} give no finite noise levels: correct scheduler_config.json and export the model again")
    result.setflags(write=False)
    return result


def _alpha_bars(noise: Noise) -> Levels:
    count = noise.train_timesteps
    if noise.edm is not UNSET:
        low, high = (math.pow(sigma, 1 / _RHO) for sigma in (noise.edm.low, noise.edm.high))
        result = 1.0 / (1.0 + np.linspace(low, high, count) ** (2 * _RHO))
    elif noise.prediction == "flow":
        result = 1.0 / (1.0 + sigma_of_flow(shifted(np.arange(1, count + 1) / count, noise.flow_shift)) ** 2)
    else:
        result = np.cumprod(1.0 - _betas(noise), dtype=np.float64)
        if noise.zero_terminal_snr:
            root = np.sqrt(result)
            result = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
            result[-1] = 2.0**-24
    return result


def _betas(noise: Noise) -> Levels:
    count, first, last = noise.train_timesteps, noise.beta_start, noise.beta_end
    if noise.betas == "linear":
        return np.linspace(first, last, count)
    if noise.betas == "scaled_linear":
        return np.linspace(math.sqrt(first), math.sqrt(last), count) ** 2
    cosine = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return np.minimum(1.0 - cosine[1:] / cosine[:-1], 0.999)


@lru_cache(maxsize=16)
def model_sigmas(noise: Noise) -> Levels:
    """Return the sigma of each training timestep, (train_timesteps,), float64, ascending, read-only."""
    bars = alpha_bars(noise)
    result = np.sqrt((1.0 - bars) / bars)
    result.setflags(write=False)
    return result


def timestep_of(noise: Noise) -> Callable[[float], float]:
    """Return the function from sigma to the model's timestep, fractional between training timesteps.

    Linear in log sigma, as in k-diffusion and diffusers; whole numbers at the model's own sigmas, clamped outside their range.
    Diffusers' multistep solvers and KDPM2 round it under karras; this does not.
    """
    if noise.edm is not UNSET:
        data = noise.edm.data
        return lambda sigma: math.log(max(sigma, 1e-10) * data) / 4.0
    if noise.prediction == "flow":
        return lambda sigma: noise.train_timesteps * sigma / (1.0 + sigma)
    logs = np.log(np.maximum(model_sigmas(noise), 1e-10))
    steps = np.arange(len(logs), dtype=np.float64)

    def timestep(sigma: float) -> float:
        exact = float(np.interp(math.log(max(sigma, 1e-10)), logs, steps))
        whole = round(exact)
        return float(whole) if abs(exact - whole) < 1e-6 else exact

    return timestep


def sigma_of(noise: Noise) -> Callable[[float], float]:
    """Return the inverse of `timestep_of` within the range of training timesteps; for an EDM model, whose timesteps are no numbers of
    steps, of the steps of `model_sigmas`.
    """
    if noise.prediction == "flow":
        return lambda timestep: float(sigma_of_flow(np.float64(timestep / noise.train_timesteps)))
    logs = np.log(np.maximum(model_sigmas(noise), 1e-10))
    steps = np.arange(len(logs), dtype=np.float64)
    return lambda timestep: math.exp(float(np.interp(timestep, steps, logs)))


def shifted(s: Levels | np.float64, shift: float) -> Levels:
    """Shift flow times s toward the noisy end, as Esser et al. 2024 (arXiv:2403.03206, section 5.3.2) do for large images."""
    return np.asarray(shift * s / (1.0 + (shift - 1.0) * s), dtype=np.float64)


def sigma_of_flow(s: Levels | np.float64) -> Levels:
    """Convert flow times s in 0 … 1 to sigmas."""
    s = np.minimum(s, _FLOW_TOP)
    return np.asarray(s / (1.0 - s), dtype=np.float64)
