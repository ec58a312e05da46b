"""Linear multistep samplers: polynomials through the last slopes, integrated over the step.

Signatures and conventions are those of `single_step`; the history is a local variable. `eps` is the noise in the sample,
(x - x0) / sigma, which equals the slope dx / dsigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ..types import Array, Denoise, Levels
from .denoise import combine
from .rng import Rng
from .single_step import noise_in

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def lms(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, order: int = 4) -> Iterator[Array]:  # noqa: ARG001  (one signature)
    """k-diffusion's linear multistep method: the polynomial in sigma through the last slopes, integrated."""
    history: list[Array] = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigma)
        history = [noise_in(x, x0, sigma), *history[: order - 1]]
        nodes = sigmas[index::-1][: len(history)].tolist()
        x = _linear_step(x, x0, sigma, sigma_next, _interpolation_integrals(nodes, sigma, sigma_next), history)
        yield x


def pndm(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng) -> Iterator[Array]:  # noqa: ARG001  (one signature)
    """Pseudo linear multistep (PLMS), Liu et al. 2022 (arXiv:2202.09778, equations 11 to 14): Adams-Bashforth on eps.

    The first step is Heun's, with one extra model call, as in diffusers with `skip_prk_steps`. The Runge-Kutta start, which Stable
    Diffusion never used, is not implemented. For v-prediction, diffusers combines the v of several timesteps; this combines eps.
    """
    history: list[Array] = []
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        history = [noise_in(x, x0, sigma), *history[:3]]
        ahead = _linear_step(x, x0, sigma, sigma_next, _adams_bashforth(sigma, sigma_next, len(history)), history)
        if len(history) == 1 and sigma_next > 0.0:
            half = 0.5 * (sigma_next - sigma)
            ahead = _linear_step(
                x, x0, sigma, sigma_next, [half, half], [*history, noise_in(ahead, denoise(ahead, sigma_next), sigma_next)]
            )
        x = ahead
        yield x


def ipndm(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng) -> Iterator[Array]:  # noqa: ARG001  (one signature)
    """`pndm` without its first Heun step (diffusers' IPNDMScheduler): lower orders until there is enough history."""
    history: list[Array] = []
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        history = [noise_in(x, x0, sigma), *history[:3]]
        x = _linear_step(x, x0, sigma, sigma_next, _adams_bashforth(sigma, sigma_next, len(history)), history)
        yield x


def _adams_bashforth(sigma: float, sigma_next: float, order: int) -> list[float]:
    return [(sigma_next - sigma) * weight for weight in _ADAMS_BASHFORTH[order - 1]]


def deis(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,  # noqa: ARG001  (one signature)
    *,
    order: int = 2,
    lower_order_final: bool = True,
) -> Iterator[Array]:
    """Zhang & Chen 2022 (arXiv:2204.13902), log-rho: eps as a polynomial in log sigma, integrated over sigma.

    Diffusers ends at the smallest sigma (the schedule's `final`), with karras twice: its `lower_order_final` counts the step of length 0.
    Here that step is left out, and a schedule may also end at 0.
    """
    history: list[Array] = []
    steps = len(sigmas) - 1
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigma)
        history = [noise_in(x, x0, sigma), *history[: order - 1]]
        used = order_of_step(index, steps, len(history), lower_order_final)
        if sigma_next == 0.0:
            x = x0
        else:
            nodes = sigmas[index::-1][:used].tolist()
            weights = _interpolation_integrals(nodes, sigma, sigma_next, logarithmic=True)
            x = _linear_step(x, x0, sigma, sigma_next, weights, history[:used])
        yield x


def order_of_step(index: int, steps: int, known: int, lower_order_final: bool, euler_at_final: bool = False) -> int:  # noqa: FBT001, FBT002  (inner)
    """Return the order of step `index` of `steps`: limited by the history, and lower toward the end of a short run."""
    left = steps - index
    if left == 1 and euler_at_final:
        return 1
    return min(known, left) if lower_order_final and steps < 15 else known


def _linear_step(x: Array, x0: Array, sigma: float, sigma_next: float, weights: Sequence[float], slopes: Sequence[Array]) -> Array:
    """Step along the weighted slopes, the first of which is that of (x, x0): Euler's step plus a correction from the others.

    This form loses no precision if sigma is huge and sigma_next is not.
    """
    share = sigma_next / sigma
    rest = (weights[0] - (sigma_next - sigma), *weights[1:])
    return combine((1.0 - share, x0), (share, x), *zip(rest, slopes, strict=True))


_POINTS, _WEIGHTS = (values.tolist() for values in np.polynomial.legendre.leggauss(16))


def _interpolation_integrals(nodes: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> list[float]:
    """Integrate the Lagrange polynomial of each node, in sigma or in log sigma, over sigma from `start` to `end`.

    Gauss-Legendre quadrature with 16 points: exact for polynomials in sigma, accurate to 1e-12 for those in log sigma.
    """
    places = [math.log(node) for node in nodes] if logarithmic else list(nodes)
    low, high = (math.log(start), math.log(end)) if logarithmic else (start, end)
    result = [0.0] * len(nodes)
    for point, weight in zip(_POINTS, _WEIGHTS, strict=True):
        place = low + (high - low) * (point + 1.0) / 2.0
        measure = weight * (high - low) / 2.0 * (math.exp(place) if logarithmic else 1.0)
        for j, own in enumerate(places):
            result[j] += measure * math.prod((place - other) / (own - other) for k, other in enumerate(places) if k != j)
    return result
