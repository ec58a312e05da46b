"""Guidance: one or more predictions of the U-Net make a `Denoise` (denoise.py), nearer to the prompt than any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from ..models.manifest import Prediction
from .denoise import EXTRA_CHANNELS, Array, Conditioning, Denoise, Feeds, Predict, Segment, Weighted, combine, denoised

_Join = Callable[[Sequence[Feeds], int], Feeds]
"""(feeds of several prompts, samples of each) → feeds of the batch of all."""


@dataclass(frozen=True)
class Guidance:
    """How strongly a picture follows its prompt."""

    scale: float = 7.5
    """1 takes the prompt's prediction as it is; more moves away from the negative prompt's (Ho & Salimans 2022, arXiv:2207.12598)."""
    rescale: float = 0.0
    """How much of the prompt's own contrast is given back, 0 … 1: phi of Lin et al. 2023 (arXiv:2305.08891, section 3.4)."""
    interval: tuple[float, float] = (0.0, math.inf)
    """Guidance works where low < sigma <= high, elsewhere the scale is 1 (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    picture_scale: float = 1.5
    """instruct-pix2pix alone: how strongly the picture holds (Brooks et al. 2022, arXiv:2211.09800, equation 3)."""
    batched: bool = False
    """All predictions of a step as one batch, or one after the other: the same time on a CPU, more memory, other last digits."""

    def __post_init__(self) -> None:
        numbers = (self.scale, self.rescale, self.picture_scale)
        if not all(math.isfinite(number) for number in numbers) or not 0.0 <= self.rescale <= 1.0:
            raise RequestError(f"guidance: scale {self.scale}, rescale {self.rescale}: expected a finite scale and a rescale from 0 to 1")
        if not 0.0 <= self.interval[0] < self.interval[1]:
            raise RequestError(f"guidance interval: {self.interval}: expected two sigmas, the lower one first")

    def scale_at(self, sigma: float) -> float:
        """The scale that holds at `sigma`."""
        return self.scale if self.interval[0] < sigma <= self.interval[1] else 1.0


def step_interval(sigmas: NDArray[np.float64], start: float, stop: float) -> tuple[float, float]:
    """The `Guidance.interval` for the steps from the fraction `start` of all to the fraction `stop`, 0 … 1.

    A step belongs to it when it begins at or after `start` and before `stop`.

    Raises:
        RequestError: not two fractions in order.
    """
    if not 0.0 <= start < stop <= 1.0:
        raise RequestError(f"guidance interval: {start} to {stop}, but these are fractions of the steps: expected 0 <= start < stop <= 1")
    steps = len(sigmas) - 1
    first, end = math.ceil(start * steps - 1e-9), math.ceil(stop * steps - 1e-9)
    high = math.inf if first == 0 else float(sigmas[first] + sigmas[first - 1]) / 2.0
    low = 0.0 if end >= steps else float(sigmas[end - 1] + sigmas[end]) / 2.0
    return low, high


def guided(
    predict: Predict,
    prediction: Prediction,
    positive: Conditioning,
    negative: Conditioning | None,
    guidance: Guidance,
    held: Segment | None = None,
) -> Denoise:
    """Classifier-free guidance over prompts joined by AND: negative + scale · Σ weightᵢ · (promptᵢ - negative).

    The negative prompt is asked only where it counts: not without one (Turbo, LCM), not outside of the interval, not where
    its factor, 1 - scale · Σ weightᵢ, is 0. Where it is not asked and the weights do not sum up to 1, they are made to.

    With `held` it is asked once in each segment: what guidance adds to the prompts' own prediction is kept for the rest of it. Such
    a denoiser is for one picture.
    """
    kept: tuple[int, Array] | None = None
    join = _joining() if guidance.batched else None

    def denoise(x: Array, sigma: float) -> Array:
        nonlocal kept
        prompts = [prompt for prompt in positive(sigma) if prompt.weight != 0.0]
        scale = guidance.scale_at(sigma)
        total = math.fsum(prompt.weight for prompt in prompts)
        inside = guidance.interval[0] < sigma <= guidance.interval[1]
        without = negative is None or not inside or abs(1.0 - scale * total) < 1e-9
        if without and total != 0.0:
            return denoised(prediction, x, sigma, _alone(predict, x, sigma, prompts, total, join))
        if negative is None:
            raise RequestError(
                "prompt: the weights of its AND parts sum up to 0, which needs a negative prompt: give one, or other weights"
            )
        segment = -1 if held is None or total == 0.0 else held(sigma)
        if kept is not None and kept[0] == segment:
            own = _alone(predict, x, sigma, prompts, total, join)
            output = own + kept[1]
        else:
            feeds = [*(prompt.feeds for prompt in prompts), negative(sigma)[0].feeds]
            *outputs, away = _predictions(predict, x, sigma, feeds, join)
            weighed = [(prompt.weight, one) for prompt, one in zip(prompts, outputs, strict=True)]
            output = combine((1.0 - scale * total, away), *((scale * weight, one) for weight, one in weighed))
            own = combine(*((weight / total, one) for weight, one in weighed)) if total != 0.0 else output
            kept = None if segment < 0 else (segment, output - own)
        if guidance.rescale > 0.0 and total != 0.0:
            output = rescaled(output, own, guidance.rescale)
        return denoised(prediction, x, sigma, output)

    return denoise


def _alone(predict: Predict, x: Array, sigma: float, prompts: Sequence[Weighted], total: float, join: _Join | None) -> Array:
    outputs = _predictions(predict, x, sigma, [prompt.feeds for prompt in prompts], join)
    if len(outputs) == 1:
        return outputs[0]
    return combine(*((prompt.weight / total, own) for prompt, own in zip(prompts, outputs, strict=True)))


def guided_by_picture(
    predict: Predict, prediction: Prediction, positive: Conditioning, negative: Conditioning, guidance: Guidance
) -> Denoise:
    """instruct-pix2pix: nothing + picture_scale · (picture - nothing) + scale · (prompt - picture).

    `positive` feeds prompt and picture (its latents under `EXTRA_CHANNELS`), `negative` the negative prompt and the same
    picture; "nothing" is the negative prompt with a picture of zeros. AND is not defined for these models.

    Raises (when called):
        RequestError: the prompt has several parts.
    """
    join = _joining() if guidance.batched else None
    zeros = cache(partial(np.zeros, dtype=np.float32))  # the same array at every sigma: what is kept of a prompt is found by that

    def denoise(x: Array, sigma: float) -> Array:
        prompts = positive(sigma)
        if len(prompts) != 1:
            raise RequestError("prompt: AND cannot be used with a model that edits pictures: write one prompt")
        scale = guidance.scale_at(sigma)
        picture_scale = guidance.picture_scale if guidance.interval[0] < sigma <= guidance.interval[1] else 1.0
        pictured = negative(sigma)[0].feeds
        nothing = {**pictured, EXTRA_CHANNELS: zeros(pictured[EXTRA_CHANNELS].shape)}
        factors = [(scale, prompts[0].feeds), (picture_scale - scale, pictured), (1.0 - picture_scale, nothing)]
        asked = [(factor, feeds) for factor, feeds in factors if factor != 0.0]
        outputs = _predictions(predict, x, sigma, [feeds for _, feeds in asked], join)
        output = combine(*((factor, own) for (factor, _), own in zip(asked, outputs, strict=True)))
        if guidance.rescale > 0.0 and asked[0][1] is prompts[0].feeds and len(asked) > 1:
            output = rescaled(output, outputs[0], guidance.rescale)
        return denoised(prediction, x, sigma, output)

    return denoise


def rescaled(output: Array, prompted: Array, share: float) -> Array:
    """Guided `output`, its standard deviation in each sample brought to that of `prompted`, to the share 0 … 1.

    Lin et al. 2023, equations 14 to 16.
    """
    axes = tuple(range(1, output.ndim))
    spread = output.std(axis=axes, keepdims=True)
    wanted: Array = prompted.std(axis=axes, keepdims=True)
    factor = np.divide(wanted, spread, out=np.ones_like(wanted), where=spread > 0.0)
    return output * combine((share, factor), (1.0 - share, np.ones_like(wanted)))


def _predictions(predict: Predict, x: Array, sigma: float, feeds: Sequence[Feeds], join: _Join | None) -> list[Array]:
    """One prediction for each of `feeds`. With `join`, neighbours whose arrays have the same shapes share a call."""
    groups: list[list[Feeds]] = []
    for one in feeds:
        if join is not None and groups and _shapes(groups[-1][0]) == _shapes(one):
            groups[-1].append(one)
        else:
            groups.append([one])
    outputs: list[Array] = []
    for group in groups:
        if join is None or len(group) == 1:
            outputs.append(predict(x, sigma, group[0]))
            continue
        outputs += np.split(predict(np.concatenate([x] * len(group)), sigma, join(group, len(x))), len(group))
    return outputs


def _joining() -> _Join:
    """Feeds of several prompts as those of one batch. For the same prompts they are the same arrays, which cannot change: a session
    keeps those where it computes.
    """
    known: dict[tuple[int, ...], tuple[Sequence[Feeds], Feeds]] = {}

    def join(group: Sequence[Feeds], batch: int) -> Feeds:
        key = (batch, *(id(value) for one in group for value in one.values()))
        if key not in known:
            joined = {name: np.concatenate([_repeated(one[name], batch) for one in group]) for name in group[0]}
            for value in joined.values():
                value.flags.writeable = False
            known[key] = (group, joined)  # as long as the arrays of a group live, their identities are theirs alone
        return known[key][1]

    return join


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feeds.items()}


def _repeated(value: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    return np.broadcast_to(value, (batch, *value.shape[1:]))
