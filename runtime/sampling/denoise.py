"""Turn a U-Net session into predictions, and predictions into denoised samples; guidance.py combines both into a `Denoise`.

A sampler sees only `Denoise`, a function of the noisy sample and its sigma.

```
session ── unet() ──► Predict ── guidance.guided() / guidance.guided_by_image() ──► Denoise ──► sampler
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ...models.errors import BundleError
from ...models.manifest import Noise, Prediction
from ..types import EXTRA_CHANNELS, Array, Call, Conditioning, Feeds, Predict, Unet, Weighted
from .noise_levels import timestep_of

_NOTHING: Feeds = MappingProxyType({})


def always(feeds: Feeds) -> Conditioning:
    """Return a conditioning with the same feeds at every sigma: that of a plain prompt."""
    prompts = (Weighted(1.0, feeds),)
    return lambda sigma: prompts  # noqa: ARG005  (the same at every sigma)


def unet(session: Unet, noise: Noise, more: Feeds = _NOTHING) -> Predict:
    """Return the prediction function of a U-Net session, whose output is `out_sample`; see `caller`."""
    call = caller(session, noise)
    return lambda x, sigma, feeds: call(x, sigma, feeds, more)["out_sample"]


def caller(session: Unet, noise: Noise) -> Call:
    """Return a function that runs a U-Net session and returns all its outputs, `out_sample` among them.

    The inputs of the session are `sample`, `timestep`, the feeds and `more`. The sample is scaled to the variance of training and the sigma
    converted to a timestep; both are cast to the dtypes that the graph declares, with the timestep rounded for an integer dtype. Feeds are
    passed on unchanged, so that a session recognizes those that it has seen.

    Raises (when called):
        BundleError: the feeds do not match the graph's inputs; the message names both.
    """
    timestep = timestep_of(noise)
    expected = {name: np.dtype(_DTYPES.get(tensor.dtype, tensor.dtype)) for name, tensor in session.inputs.items()}
    timestep_shape = session.inputs["timestep"].shape if "timestep" in session.inputs else ()

    def call(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> Mapping[str, Array]:
        scaled: NDArray[np.generic] = combine((model_scale(noise.prediction, sigma), x))
        if EXTRA_CHANNELS in feeds:
            scaled = np.concatenate([scaled, np.broadcast_to(feeds[EXTRA_CHANNELS], (len(x), *feeds[EXTRA_CHANNELS].shape[1:]))], axis=1)
        step: dict[str, NDArray[np.generic]] = {"sample": scaled, "timestep": _timesteps(timestep(sigma), timestep_shape, len(x))}
        prompt = {name: np.broadcast_to(value, (len(x), *value.shape[1:])) for name, value in feeds.items() if name != EXTRA_CHANNELS}
        ready = {**step, **prompt, **more}
        if ready.keys() != expected.keys():
            raise BundleError(f"U-Net: the graph expects {_listed(expected)}, but receives {_listed(ready)}; export the model again")
        outputs = session.run({**ready, **{name: _whole(value, expected[name]).astype(expected[name]) for name, value in step.items()}})
        if "out_sample" not in outputs:
            raise BundleError(f"U-Net: the graph returns {_listed(outputs)}, expected out_sample; export the model again")
        if outputs["out_sample"].shape != x.shape:
            shape = list(outputs["out_sample"].shape)
            raise BundleError(f"U-Net: the graph returned out_sample as {shape}, expected {list(x.shape)}; export the model again")
        return {name: np.asarray(value, dtype=np.float32) for name, value in outputs.items()}

    return call


_DTYPES = {"float": "float32", "double": "float64"}


def _timesteps(value: float, shape: tuple[int | str, ...], batch: int) -> NDArray[np.float64]:
    """Return the timestep in the declared shape: a scalar, one value, or one per sample. Free dimensions other than the batch are 1."""
    if not shape:
        return np.array(value)
    return np.full(batch if isinstance(shape[0], str) and "batch" in shape[0] else 1, value)


def _whole(value: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return np.rint(value) if dtype.kind in "iu" and value.dtype.kind == "f" else value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def model_scale(prediction: Prediction, sigma: float) -> float:
    """Return the factor that scales `x` for the model: to unit variance, or for flow models to `(1 - s) · x0 + s · noise`."""
    return 1.0 / (1.0 + sigma) if prediction == "flow" else 1.0 / math.sqrt(1.0 + sigma * sigma)


def denoised(prediction: Prediction, x: Array, sigma: float, output: Array) -> Array:
    """Convert a prediction to x0, float32, shaped like `x`.

    The prediction is epsilon (Ho et al. 2020), v (Salimans & Ho 2022, arXiv:2202.00512), the sample itself, the velocity of a flow
    (Esser et al. 2024), or that of EDM (Karras et al. 2022, table 1, with everything divided by sigma_data). x0 is linear in it.
    """
    if prediction == "epsilon":
        return combine((1.0, x), (-sigma, output))
    if prediction == "v_prediction":
        return combine((1.0 / (sigma * sigma + 1.0), x), (-sigma / math.sqrt(sigma * sigma + 1.0), output))
    if prediction == "edm":
        return combine((1.0 / (sigma * sigma + 1.0), x), (sigma / math.sqrt(sigma * sigma + 1.0), output))
    if prediction == "flow":
        return combine((1.0 / (1.0 + sigma), x), (-sigma / (1.0 + sigma), output))
    return output


def combine(*terms: tuple[float, Array]) -> Array:
    """Return the weighted sum of the arrays, in float32. The float64 factors are rounded once; Inf is the caller's to find."""
    with np.errstate(all="ignore"):
        total = np.float32(terms[0][0]) * terms[0][1]
        for factor, array in terms[1:]:
            if factor != 0.0:
                total += np.float32(factor) * array
        return total


def guidance_embedding(scale: float, width: int) -> Array:
    """Return the `timestep_cond` of a latent consistency model, (1, width), float32: its guidance scale as sinusoids.

    Luo et al. 2023 (arXiv:2310.04378): w = scale - 1, multiplied by 1000, sines before cosines; the last value of an odd width is 0.
    """
    half = width // 2
    angles = (scale - 1.0) * 1000.0 * np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    result = np.zeros((1, width), dtype=np.float32)
    result[0, : 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return result
