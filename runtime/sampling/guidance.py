"""Guidance: combine several predictions of the U-Net into a `Denoise` that follows the prompt more closely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ...models.manifest import Prediction
from ..types import EXTRA_CHANNELS, Array, Conditioning, Denoise, Feeds, Predict, Segment, Weighted
from .denoise import combine, denoised

_Join = Callable[[Sequence[Feeds], int], Feeds]
"""(feeds of several prompts, samples per prompt) → feeds of one batch."""


@dataclass(frozen=True)
class Guidance:
    """How strongly an image follows its prompt."""

    scale: float = 7.5
    """1 uses the prompt's prediction alone; more moves away from the negative prompt's (Ho & Salimans 2022, arXiv:2207.12598)."""
    rescale: float = 0.0
    """How far the contrast of the prompt's own prediction is restored, 0 … 1: phi of Lin et al. 2023 (arXiv:2305.08891, section 3.4)."""
    interval: tuple[float, float] = (0.0, math.inf)
    """Guidance applies for low < sigma <= high; elsewhere the scale is 1 (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""
    image_scale: float = 1.5
    """InstructPix2Pix only: the guidance scale of the init image (Brooks et al. 2022, arXiv:2211.09800, equation 3)."""
    batched: bool = False
    """Run all predictions of a step as one batch. On a CPU this takes the same time and more memory; results differ in the last digits."""

    def __post_init__(self) -> None:
        numbers = (self.scale, self.rescale, self.image_scale)
        if not all(math.isfinite(number) for number in numbers) or not 0.0 <= self.rescale <= 1.0:
            raise RequestError(f"guidance: scale {self.scale}, rescale {self.rescale}; expected a finite scale and a rescale from 0 to 1")
        if not 0.0 <= self.interval[0] < self.interval[1]:
            raise RequestError(f"guidance interval: {self.interval}, expected two sigmas, the lower one first")

    def scale_at(self, sigma: float) -> float:
        """Return the scale to use at `sigma`."""
        return self.scale if self.interval[0] < sigma <= self.interval[1] else 1.0


def step_interval(sigmas: NDArray[np.float64], start: float, stop: float) -> tuple[float, float]:
    """Return the `Guidance.interval` for the steps between two fractions of the run, `start` and `stop`, 0 … 1.

    A step is included if it begins at or after `start` and before `stop`.

    Raises:
        RequestError: `start` and `stop` are not ascending fractions.
    """
    if not 0.0 <= start < stop <= 1.0:
        raise RequestError(f"guidance interval: {start} to {stop}, expected fractions of the steps with 0 <= start < stop <= 1")
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

    The U-Net runs on the negative prompt only if it matters: if there is one (Turbo and LCM have none), inside the interval, and if its
    factor, 1 - scale · Σ weightᵢ, is not 0. Without it, the weights are normalized to a sum of 1.

    With `held`, the negative prompt runs once per segment; the difference that guidance adds to the prompts' own prediction is reused for
    the rest of the segment. Use that denoiser for one image only.
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
                "prompt: the weights of the AND parts sum to 0, which requires a negative prompt; add one, or change the weights"
            )
        segment = -1 if held is None or total == 0.0 else held(sigma)
        if kept is not None and kept[0] == segment:
            own = _alone(predict, x, sigma, prompts, total, join)
            output = own + kept[1]
        else:
            feeds = [*(prompt.feeds for prompt in prompts), negative(sigma)[0].feeds]
            *outputs, away = _predictions(predict, x, sigma, feeds, join)
            weighted = [(prompt.weight, one) for prompt, one in zip(prompts, outputs, strict=True)]
            output = combine((1.0 - scale * total, away), *((scale * weight, one) for weight, one in weighted))
            own = combine(*((weight / total, one) for weight, one in weighted)) if total != 0.0 else output
            kept = None if segment < 0 else (segment, output - own)
        if guidance.rescale > 0.0 and total != 0.0:
            output = rescaled(output, own, guidance.rescale)
        return denoised(prediction, x, sigma, output)

    return denoise


def _alone(predict: Predict, x: Array, sigma: float, prompts: Sequence[Weighted], total: float, join: _Join | None) -> Array:
    """Return the weighted mean of the prompts' predictions, without a negative prompt."""
    outputs = _predictions(predict, x, sigma, [prompt.feeds for prompt in prompts], join)
    if len(outputs) == 1:
        return outputs[0]
    return combine(*((prompt.weight / total, own) for prompt, own in zip(prompts, outputs, strict=True)))


def guided_by_image(
    predict: Predict, prediction: Prediction, positive: Conditioning, negative: Conditioning, guidance: Guidance
) -> Denoise:
    """InstructPix2Pix: unconditional + image_scale · (image - unconditional) + scale · (prompt - image).

    `positive` has the feeds of the prompt and the image (its latents under `EXTRA_CHANNELS`), `negative` those of the negative prompt and
    the same image; the unconditional prediction uses the negative prompt and zeros for the image. AND is not supported.

    Raises (when called):
        RequestError: the prompt has several parts.
    """
    join = _joining() if guidance.batched else None
    zeros = cache(partial(np.zeros, dtype=np.float32))  # the identical array at every sigma: step caching identifies feeds by it

    def denoise(x: Array, sigma: float) -> Array:
        prompts = positive(sigma)
        if len(prompts) != 1:
            raise RequestError("prompt: AND does not work with image-editing models; write one prompt")
        scale = guidance.scale_at(sigma)
        image_scale = guidance.image_scale if guidance.interval[0] < sigma <= guidance.interval[1] else 1.0
        image = negative(sigma)[0].feeds
        unconditional = {**image, EXTRA_CHANNELS: zeros(image[EXTRA_CHANNELS].shape)}
        factors = [(scale, prompts[0].feeds), (image_scale - scale, image), (1.0 - image_scale, unconditional)]
        needed = [(factor, feeds) for factor, feeds in factors if factor != 0.0]
        outputs = _predictions(predict, x, sigma, [feeds for _, feeds in needed], join)
        output = combine(*((factor, own) for (factor, _), own in zip(needed, outputs, strict=True)))
        if guidance.rescale > 0.0 and needed[0][1] is prompts[0].feeds and len(needed) > 1:
            output = rescaled(output, outputs[0], guidance.rescale)
        return denoised(prediction, x, sigma, output)

    return denoise


def rescaled(output: Array, prompted: Array, share: float) -> Array:
    """Rescale each sample of the guided `output` toward the standard deviation of `prompted`; `share` is 0 … 1.

    Lin et al. 2023 (arXiv:2305.08891), equations 14 to 16.
    """
    axes = tuple(range(1, output.ndim))
    spread = output.std(axis=axes, keepdims=True)
    wanted: Array = prompted.std(axis=axes, keepdims=True)
    factor = np.divide(wanted, spread, out=np.ones_like(wanted), where=spread > 0.0)
    return output * combine((share, factor), (1.0 - share, np.ones_like(wanted)))


def _predictions(predict: Predict, x: Array, sigma: float, feeds: Sequence[Feeds], join: _Join | None) -> list[Array]:
    """Return one prediction for each of `feeds`. With `join`, neighbours with arrays of the same shapes share a call."""
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
    """Return a function that joins the feeds of several prompts into those of one batch.

    The same prompts always give the same read-only arrays, so a session copies them to its device once.
    """
    known: dict[tuple[int, ...], tuple[Sequence[Feeds], Feeds]] = {}

    def join(group: Sequence[Feeds], batch: int) -> Feeds:
        key = (batch, *(id(value) for one in group for value in one.values()))
        if key not in known:
            joined = {name: np.concatenate([_repeated(one[name], batch) for one in group]) for name in group[0]}
            for value in joined.values():
                value.flags.writeable = False
            known[key] = (group, joined)  # holding the group keeps the ids of its arrays unique
        return known[key][1]

    return join


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in feeds.items()}


def _repeated(value: NDArray[np.generic], batch: int) -> NDArray[np.generic]:
    return np.broadcast_to(value, (batch, *value.shape[1:]))
