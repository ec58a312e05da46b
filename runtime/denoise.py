"""From a U-Net session to a prediction, and from a prediction to the denoised sample; guidance.py makes a `Denoise` of both.

The seam of the runtime: a sampler sees only `Denoise`, a function of the noisy sample and its sigma.

```
session ── unet() ──► Predict ── guidance.guided() / guidance.guided_by_picture() ──► Denoise ──► a sampler
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError
from ..models.manifest import Noise, Prediction, Tensor
from .noise_levels import timestep_of

Array = NDArray[np.float32]
Denoise = Callable[[Array, float], Array]
"""(x, sigma) → the denoised sample. x = x0 + sigma · noise, float32, (1, channels, height, width)."""
Feeds = Mapping[str, NDArray[np.generic]]
"""What a prompt gives to the U-Net: `encoder_hidden_states` (1, tokens, width), for SDXL `text_embeds` and `time_ids`, …"""
Predict = Callable[[Array, float, Feeds], Array]
"""(x, sigma, feeds) → what the U-Net was trained to predict (noise, v, …), float32, shaped like x; any batch size."""

EXTRA_CHANNELS = "extra_channels"
"""A feed that is no input of its own: (1, k, height, width), put behind the scaled sample's channels. Inpainting U-Nets take
mask and masked picture there (k = 5), instruct-pix2pix the picture (k = 4)."""


Call = Callable[[Array, float, Feeds, Feeds], Mapping[str, Array]]
"""(x, sigma, feeds, more) → every output of the graph by name; `more` are inputs that are fed as they are."""
Segment = Callable[[float], int]
"""sigma → the number of the part of the trajectory that it lies in; what is kept from one step to the next is kept within a part."""


_NOTHING: Feeds = MappingProxyType({})


class Weighted(NamedTuple):
    """One of the prompts joined by AND."""

    weight: float
    feeds: Feeds


Conditioning = Callable[[float], Sequence[Weighted]]
"""sigma → the prompts that hold at that sigma; a plain prompt gives the same one everywhere."""


class Unet(Protocol):
    """What is needed of a session."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...
    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]: ...


def always(feeds: Feeds) -> Conditioning:
    """The conditioning of a plain prompt."""
    prompts = (Weighted(1.0, feeds),)
    return lambda sigma: prompts  # noqa: ARG005  (the same at every sigma)


def unet(session: Unet, noise: Noise, more: Feeds = _NOTHING) -> Predict:
    """The prediction of a U-Net session, which takes `sample`, `timestep`, the feeds and `more`, and gives `out_sample`; see `caller`."""
    call = caller(session, noise)
    return lambda x, sigma, feeds: call(x, sigma, feeds, more)["out_sample"]


def caller(session: Unet, noise: Noise) -> Call:
    """All that a U-Net session gives, which takes `sample`, `timestep`, the feeds and `more`, and gives `out_sample` at least.

    The sample is scaled to the variance of training, the sigma turned into a timestep, both cast to the dtypes that the graph declares; a
    whole-number timestep is rounded. Feeds are passed on as they are: a session knows those that it has seen.

    Raises (when called):
        BundleError: feeds and the graph's inputs do not fit; the message names both.
    """
    timestep = timestep_of(noise)
    expected = {name: np.dtype(_DTYPES.get(tensor.dtype, tensor.dtype)) for name, tensor in session.inputs.items()}
    times = session.inputs["timestep"].shape if "timestep" in session.inputs else ()

    def call(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> Mapping[str, Array]:
        scaled: NDArray[np.generic] = combine((model_scale(noise.prediction, sigma), x))
        if EXTRA_CHANNELS in feeds:
            scaled = np.concatenate([scaled, np.broadcast_to(feeds[EXTRA_CHANNELS], (len(x), *feeds[EXTRA_CHANNELS].shape[1:]))], axis=1)
        made: dict[str, NDArray[np.generic]] = {"sample": scaled, "timestep": _timesteps(timestep(sigma), times, len(x))}
        told = {name: np.broadcast_to(value, (len(x), *value.shape[1:])) for name, value in feeds.items() if name != EXTRA_CHANNELS}
        ready = {**made, **told, **more}
        if ready.keys() != expected.keys():
            raise BundleError(f"U-Net: the graph takes {_listed(expected)}, but the prompt gives {_listed(ready)}: export the model again")
        outputs = session.run({**ready, **{name: _whole(value, expected[name]).astype(expected[name]) for name, value in made.items()}})
        if "out_sample" not in outputs:
            raise BundleError(f"U-Net: the graph gives {_listed(outputs)}, but out_sample was expected: export the model again")
        return {name: np.asarray(value, dtype=np.float32) for name, value in outputs.items()}

    return call


_DTYPES = {"float": "float32", "double": "float64"}


def _timesteps(value: float, shape: tuple[int | str, ...], batch: int) -> NDArray[np.float64]:
    """A scalar, one number, or one for each sample, as the graph declares it; a free dimension that is not the batch's is 1."""
    if not shape:
        return np.array(value)
    return np.full(batch if isinstance(shape[0], str) and "batch" in shape[0] else 1, value)


def _whole(value: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return np.rint(value) if dtype.kind in "iu" and value.dtype.kind == "f" else value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def model_scale(prediction: Prediction, sigma: float) -> float:
    """What `x` is multiplied with before the model sees it: to unit variance, for flow models to `(1 - s) · x0 + s · noise`."""
    return 1.0 / (1.0 + sigma) if prediction == "flow" else 1.0 / math.sqrt(1.0 + sigma * sigma)


def denoised(prediction: Prediction, x: Array, sigma: float, output: Array) -> Array:
    """x0 from a prediction: epsilon (Ho et al. 2020), v (Salimans & Ho 2022, arXiv:2202.00512), the sample itself, or the
    velocity of a flow (Esser et al. 2024). Float32, shaped like `x`, in which each is linear.
    """
    if prediction == "epsilon":
        return combine((1.0, x), (-sigma, output))
    if prediction == "v_prediction":
        return combine((1.0 / (sigma * sigma + 1.0), x), (-sigma / math.sqrt(sigma * sigma + 1.0), output))
    if prediction == "flow":
        return combine((1.0 / (1.0 + sigma), x), (-sigma / (1.0 + sigma), output))
    return output


def combine(*terms: tuple[float, Array]) -> Array:
    """The sum of the arrays, each times its factor: float64 factors are rounded once, everything stays float32."""
    total = np.float32(terms[0][0]) * terms[0][1]
    for factor, array in terms[1:]:
        if factor != 0.0:
            total += np.float32(factor) * array
    return total


def guidance_embedding(scale: float, width: int) -> Array:
    """The `timestep_cond` of a latent consistency model, (1, width), float32: its guidance scale as sinusoids.

    Luo et al. 2023 (arXiv:2310.04378): w = scale - 1, a thousandfold, sines before cosines, an odd last place 0.
    """
    half = width // 2
    angles = (scale - 1.0) * 1000.0 * np.exp(np.arange(half) * (-math.log(10000.0) / (half - 1)))
    result = np.zeros((1, width), dtype=np.float32)
    result[0, : 2 * half] = np.concatenate([np.sin(angles), np.cos(angles)])
    return result
