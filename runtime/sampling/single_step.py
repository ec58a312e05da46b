"""Samplers without history: Euler and its stochastic variants, second-order steps, few-step models.

Each is a generator `(denoise, x, sigmas, rng) -> Iterator`: x starts at `sigmas[0]` in k-diffusion's scale (x0 + sigma · noise), and each
yielded array is the sample at the next sigma. Coefficients are Python floats, samples float32.

A sample x of the papers that use alpha-bars (DDPM, DDIM, LCM, TCD) is `x / sqrt(alpha_bar)` here. In this scale DDIM is Euler's step, and
eta adds exactly the noise of an ancestral step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from ...models.manifest import Noise
from ..types import Array, Denoise, Levels
from .denoise import combine
from .noise_levels import sigma_of, timestep_of
from .rng import Rng


def euler(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Array]:
    """Euler's method; with `s_churn`, algorithm 2 of Karras et al. 2022 without its second-order correction.

    With churn, the model receives the sample after churn, as in the paper; in diffusers it receives the one before.
    """
    churn = _churn(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x, sigma_hat = churn(x, sigma, rng)
        x0 = denoise(x, sigma_hat)
        x = _toward(x0, x, sigma_next / sigma_hat)
        yield x


def euler_a(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Array]:
    """Euler step to sigma_down, then add noise back up to sigma_next (k-diffusion's "ancestral")."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        down, up = _ancestral(sigma, sigma_next, eta)
        x0 = denoise(x, sigma)
        x = _toward(x0, x, down / sigma)
        if up > 0.0:
            x = combine((1.0, x), (up * s_noise, rng.normal(x.shape)))
        yield x


def ddim(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 0.0) -> Iterator[Array]:
    """Song et al. 2020 (arXiv:2010.02502), equation 12; eta 0 is deterministic, 1 is DDPM.

    Diffusers always steps down by train_timesteps // steps; here each step ends where the next one begins. Both are the same unless the
    spacing is uneven (linspace, or trailing if the steps do not divide train_timesteps).
    """
    return euler_a(denoise, x, sigmas, rng, eta=eta)


def ddpm(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, large_variance: bool = False) -> Iterator[Array]:
    """Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7; `large_variance` uses beta as the variance ("fixed_large").

    As in algorithm 2 of the paper, the last step adds no noise; with "fixed_large" diffusers adds some at timesteps above 0.
    """
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        down, up = _ancestral(sigma, sigma_next, 1.0)
        if large_variance and sigma_next > 0.0:
            growth = 1.0 + sigma_next**2
            up = math.sqrt(growth - growth**2 / (1.0 + sigma**2))
        x0 = denoise(x, sigma)
        x = _toward(x0, x, down / sigma)
        if up > 0.0:
            x = combine((1.0, x), (up, rng.normal(x.shape)))
        yield x


def heun(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Array]:
    """Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364): Heun's method, with an Euler step at the end. Two model calls per step."""
    churn = _churn(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x, sigma_hat = churn(x, sigma, rng)
        x0 = denoise(x, sigma_hat)
        ahead = _toward(x0, x, sigma_next / sigma_hat)
        if sigma_next > 0.0:
            slope, slope_ahead = noise_in(x, x0, sigma_hat), noise_in(ahead, denoise(ahead, sigma_next), sigma_next)
            half = 0.5 * (sigma_next - sigma_hat)
            ahead = combine((1.0, ahead), (half, slope_ahead), (-half, slope))
        x = ahead
        yield x


def dpm2(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Array]:
    """k-diffusion's DPM2: the midpoint method in log sigma (after DPM-Solver-2, arXiv:2206.00927). Two model calls per step."""
    churn = _churn(len(sigmas) - 1, s_churn, s_tmin, s_tmax, s_noise)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x, sigma_hat = churn(x, sigma, rng)
        x = _midpoint_step(denoise, x, sigma_hat, sigma_next)
        yield x


def dpm2_a(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Array]:
    """`dpm2` with ancestral noise."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        down, up = _ancestral(sigma, sigma_next, eta)
        x = _midpoint_step(denoise, x, sigma, down)
        if up > 0.0:
            x = combine((1.0, x), (up * s_noise, rng.normal(x.shape)))
        yield x


def _midpoint_step(denoise: Denoise, x: Array, sigma: float, sigma_next: float) -> Array:
    x0 = denoise(x, sigma)
    if sigma_next == 0.0:
        return x0
    middle = math.sqrt(sigma * sigma_next)
    halfway = _toward(x0, x, middle / sigma)
    return combine((1.0, x), (sigma_next - sigma, noise_in(halfway, denoise(halfway, middle), middle)))


def dpmpp_2s_a(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Array]:
    """k-diffusion's DPM-Solver++(2S) with ancestral noise (arXiv:2211.01095, algorithm 1, r = 1/2). Two model calls per step."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        down, up = _ancestral(sigma, sigma_next, eta)
        x0 = denoise(x, sigma)
        if down > 0.0:
            middle = math.sqrt(sigma * down)
            x0 = denoise(_toward(x0, x, middle / sigma), middle)
        x = _toward(x0, x, down / sigma)
        if up > 0.0:
            x = combine((1.0, x), (up * s_noise, rng.normal(x.shape)))
        yield x


def dpmpp_sde(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Array]:
    """k-diffusion's DPM-Solver++ (stochastic): `dpmpp_2s_a` with noise at the midpoint too. Two model calls per step.

    Both noises of a step are increments of one Brownian motion in sigma: the second includes the first.
    """
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        if sigma_next == 0.0:
            x = x0
            yield x
            continue
        middle = math.sqrt(sigma * sigma_next)
        down, up = _ancestral(sigma, middle, eta)
        first = rng.normal(x.shape)
        x0 = denoise(combine((1.0, _toward(x0, x, down / sigma)), (up * s_noise, first)), middle)
        share = (sigma - middle) / (sigma - sigma_next)
        whole = combine((math.sqrt(share), first), (math.sqrt(1.0 - share), rng.normal(x.shape)))
        down, up = _ancestral(sigma, sigma_next, eta)
        x = combine((1.0, _toward(x0, x, down / sigma)), (up * s_noise, whole))
        yield x


def lcm(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng) -> Iterator[Array]:
    """Latent consistency models (Luo et al. 2023, arXiv:2310.04378): denoise fully, add new noise, repeat.

    The paper's boundary scalings (c_skip, c_out) are left out: from timestep 19 on, the last one of these models, they differ from 0 and 1
    by less than 1e-5.
    """
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x = denoise(x, sigma)
        if sigma_next > 0.0:
            x = combine((1.0, x), (sigma_next, rng.normal(x.shape)))
        yield x


_STABLE_DIFFUSION = Noise()


def tcd(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 0.3, noise: Noise = _STABLE_DIFFUSION) -> Iterator[Array]:
    """Trajectory consistency distillation (Zheng et al. 2024, arXiv:2402.19159), strategic stochastic sampling.

    Each step goes below its end t', to the timestep (1 - eta) · t', and adds noise back up to t'. `eta` is the paper's gamma; `noise`
    provides the timesteps. Diffusers ends at the model's smallest sigma; this ends where `sigmas` does.
    """
    timestep, sigma_at = timestep_of(noise), sigma_of(noise)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        below = 0.0
        if sigma_next > 0.0:
            below = min(sigma_next, sigma_at(math.floor((1.0 - eta) * timestep(sigma_next)))) if eta > 0.0 else sigma_next
        x0 = denoise(x, sigma)
        x = _toward(x0, x, below / sigma)
        if below < sigma_next:
            x = combine((1.0, x), (math.sqrt(sigma_next**2 - below**2), rng.normal(x.shape)))
        yield x


def euler_flow(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, stochastic: bool = False) -> Iterator[Array]:
    """Euler's method for flow matching (Esser et al. 2024, arXiv:2403.03206): in this scale, plain `euler`.

    `stochastic` adds new noise instead of the predicted noise, as diffusers' `stochastic_sampling`.
    """
    return (lcm if stochastic else euler)(denoise, x, sigmas, rng)


def noise_in(x: Array, x0: Array, sigma: float) -> Array:
    """Return eps, the unit noise in x = x0 + sigma · eps; it is also the slope dx / dsigma of the probability flow."""
    return combine((1.0 / sigma, x), (-1.0 / sigma, x0))


def _toward(x0: Array, x: Array, share: float) -> Array:
    """Return the sample with that share of its noise left: a step of Euler, DDIM or first-order DPM-Solver."""
    return combine((1.0 - share, x0), (share, x))


def _ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return sigma_down to step to, and sigma_up, the noise to add to reach sigma_next (k-diffusion, `get_ancestral_step`)."""
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def _churn(steps: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> Callable[[Array, float, Rng], tuple[Array, float]]:
    """Return the churn of algorithm 2 of Karras et al. 2022, which adds a little noise and increases sigma to match."""

    def churned(x: Array, sigma: float, rng: Rng) -> tuple[Array, float]:
        gamma = min(s_churn / steps, math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma == 0.0:
            return x, sigma
        sigma_hat = sigma * (1.0 + gamma)
        return combine((1.0, x), (math.sqrt(sigma_hat**2 - sigma**2) * s_noise, rng.normal(x.shape))), sigma_hat

    return churned
