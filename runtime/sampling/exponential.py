"""Exponential integrators: the multistep samplers of the DPM-Solver family.

Signatures and conventions are those of `single_step`; the history is a local variable. `h` is a step in lambda = -log sigma, half the
log of the signal-to-noise ratio: in k-diffusion's scale the alphas of the papers cancel out. If a step ends at 0, h is infinite and the
result is x0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from ..types import Array, Denoise, Levels
from .denoise import combine
from .multistep import order_of_step
from .rng import Rng


def unipc(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,  # noqa: ARG001  (one signature)
    *,
    order: int = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
) -> Iterator[Array]:
    """UniPC, Zhao et al. 2023 (arXiv:2302.04867): a predictor, and a corrector that needs no extra model call."""
    lambdas = [-math.log(sigma) for sigma in sigmas.tolist() if sigma > 0.0]
    steps = len(sigmas) - 1
    history: list[Array] = []  # x0 at index, index - 1, …
    before: tuple[Array, int] | None = None  # the sample at index - 1 and the order of the step that started there
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigma)
        if before is not None:
            x = _unipc_step(before[0], sigmas[index - 1 : index + 1].tolist(), lambdas[index - 1 :: -1], history[: before[1]], variant, x0)
        history = [x0, *history[: order - 1]]
        used = min(order, index + 1, steps - index) if lower_order_final else min(order, index + 1)
        before = x, used
        x = x0 if sigma_next == 0.0 else _unipc_step(x, [sigma, sigma_next], lambdas[index::-1], history[:used], variant, None)
        yield x


def _unipc_step(
    x: Array, ends: Sequence[float], lambdas: Sequence[float], history: Sequence[Array], variant: str, arrived: Array | None
) -> Array:
    """Step from the first to the second sigma of `ends`: the predictor or, given x0 at the second sigma (`arrived`), the corrector."""
    h = math.log(ends[0] / ends[1])
    order = len(history)
    ratios = [(lam - lambdas[0]) / h for lam in lambdas[1:order]]
    differences = [combine((1.0 / ratio, old), (-1.0 / ratio, history[0])) for old, ratio in zip(history[1:], ratios, strict=True)]
    if arrived is not None:
        ratios, differences = [*ratios, 1.0], [*differences, arrived - history[0]]
    base = math.expm1(-h)
    scale = base if variant == "bh2" else -h
    corrections = [-scale * weight for weight in _unipc_weights(ratios, h, scale)]
    return combine((ends[1] / ends[0], x), (-base, history[0]), *zip(corrections, differences, strict=True))


def _unipc_weights(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """Weights that match the expansion of the exact solution (UniPC, theorem 3.1). One weight alone is 1/2, as in the authors' code."""
    count = len(ratios)
    if count < 2:
        return [0.5] * count
    phi, factorial, right = math.expm1(-h) / -h - 1.0, 1.0, list[float]()
    for power in range(1, count + 1):
        right.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -h - 1.0 / factorial
    matrix = np.vander(np.array(ratios), count, increasing=True).T
    return np.linalg.solve(matrix, np.array(right)).tolist()


def dpmpp_2m(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,  # noqa: ARG001  (one signature)
    *,
    order: int = 2,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Array]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095, algorithm 2); with `order` 3, DPM-Solver++(3M).

    `lower_order_final` applies below 15 steps, as in diffusers. A last step to 0 is always first order.
    """
    history: list[Array] = []
    lambdas = _lambdas(sigmas)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        history = [denoise(x, sigma), *history[: order - 1]]
        used = order_of_step(index, len(sigmas) - 1, len(history), lower_order_final, euler_at_final)
        h = lambdas[index + 1] - lambdas[index]
        x = combine((sigma_next / sigma, x), *_exponential_step(h, _slopes(lambdas, index, history[:used]), solver))
        yield x


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Array]:
    """SDE-DPM-Solver++(2M) of the same paper. With eta 0 it equals `dpmpp_2m`. Each step draws one independent normal array."""
    return _multistep_sde(denoise, x, sigmas, rng, 2, eta, s_noise, solver, lower_order_final, euler_at_final)


def dpmpp_2m_sde_heun(denoise: Denoise, x: Array, sigmas: Levels, rng: Rng, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Array]:
    """k-diffusion's DPM-Solver++(2M) SDE with `solver_type="heun"`: `dpmpp_2m_sde` with Heun's weights and no lower order at the end."""
    return _multistep_sde(denoise, x, sigmas, rng, 2, eta, s_noise, "heun", False, False)


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Array]:
    """k-diffusion's DPM-Solver++(3M) SDE. Diffusers' third-order SDE step, whose last term has a different sign, is not followed."""
    return _multistep_sde(denoise, x, sigmas, rng, 3, eta, s_noise, "heun", False, False)


def _multistep_sde(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,
    order: int,
    eta: float,
    s_noise: float,
    solver: str,
    lower_order_final: bool,  # noqa: FBT001  (inner)
    euler_at_final: bool,  # noqa: FBT001  (inner)
) -> Iterator[Array]:
    history: list[Array] = []
    lambdas = _lambdas(sigmas)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        history = [denoise(x, sigma), *history[: order - 1]]
        if sigma_next == 0.0:
            yield history[0]
            break
        used = order_of_step(index, len(sigmas) - 1, len(history), lower_order_final, euler_at_final)
        h = lambdas[index + 1] - lambdas[index]
        slopes = _slopes(lambdas, index, history[:used])
        x = combine((sigma_next / sigma * math.exp(-eta * h), x), *_exponential_step((1.0 + eta) * h, slopes, solver))
        noise = sigma_next * math.sqrt(-math.expm1(-2.0 * eta * h)) * s_noise
        if noise > 0.0:
            x = combine((1.0, x), (noise, rng.normal(x.shape)))
        yield x


def dpmpp_2s(
    denoise: Denoise,
    x: Array,
    sigmas: Levels,
    rng: Rng,  # noqa: ARG001  (one signature)
    *,
    solver: Literal["midpoint", "heun"] = "midpoint",
) -> Iterator[Array]:
    """DPM-Solver++(2S) as in diffusers' DPMSolverSinglestepScheduler: each pair of steps forms one second-order step.

    The second step of a pair restarts from the beginning of the pair and uses both predictions. The last step is first order, and so is
    the one before it if the number of steps is even.
    """
    steps = len(sigmas) - 1
    lambdas = _lambdas(sigmas)
    start, x0_start = x, x
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = denoise(x, sigma)
        if index % 2 == 0 or index == steps - 1:
            start, x0_start = x, x0
            x = combine((sigma_next / sigma, x), (1.0 - sigma_next / sigma, x0))
        else:
            h = lambdas[index + 1] - lambdas[index - 1]
            r = (lambdas[index] - lambdas[index - 1]) / h
            slope = combine((1.0 / r, x0), (-1.0 / r, x0_start))
            x = combine((sigma_next / float(sigmas[index - 1]), start), *_exponential_step(h, [x0_start, slope], solver))
        yield x


def _lambdas(sigmas: Levels) -> list[float]:
    return [-math.log(sigma) if sigma > 0.0 else math.inf for sigma in sigmas.tolist()]


def _slopes(lambdas: Sequence[float], index: int, history: Sequence[Array]) -> list[Array]:
    """Return x0 and its divided differences in lambda, in units of the step that begins at `index`: D0, D1, D2 of the paper."""
    h = lambdas[index + 1] - lambdas[index]
    if len(history) == 1 or h == math.inf:
        return [history[0]]
    r0 = (lambdas[index] - lambdas[index - 1]) / h
    first = combine((1.0 / r0, history[0]), (-1.0 / r0, history[1]))
    if len(history) == 2:
        return [history[0], first]
    r1 = (lambdas[index - 1] - lambdas[index - 2]) / h
    r = r0 + r1
    change = combine((1.0 / r, first), (-1.0 / r / r1, history[1]), (1.0 / r / r1, history[2]))
    return [history[0], combine((1.0, first), (r0, change)), change]


def _exponential_step(h: float, slopes: Sequence[Array], solver: str) -> list[tuple[float, Array]]:
    """Return D0, D1, D2 with their weights over a step of length h, the phi-functions of -h."""
    phi_1 = -math.expm1(-h)
    if len(slopes) == 1:
        return [(phi_1, slopes[0])]
    if len(slopes) == 2 and solver == "midpoint":
        return [(phi_1, slopes[0]), (0.5 * phi_1, slopes[1])]
    phi_2 = 1.0 - phi_1 / h
    return list(zip((phi_1, phi_2, 0.5 - phi_2 / h), slopes, strict=False))
