"""Less work per picture: what is left out at which speed.

* *Reuse*: what lies deep in the U-Net is computed in every n-th step alone, and extrapolated in the steps between: DeepCache (Ma et
  al. 2023, arXiv:2312.00858) with TaylorSeer's extrapolation of first order (Liu et al. 2025, arXiv:2503.06923). `reusing`.
* *Held guidance*: the negative prompt is asked in those steps alone, and what guidance added there is added between. `guidance.guided`.
* *Strided tokens*: self-attentions of the highest resolution look at every second pixel along each side (ToDo, Smith et al. 2024,
  arXiv:2402.13573).

The graphs that reuse and strides take are made by export/reuse.py. What is remembered lives as long as the drawing of one picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from ..models.manifest import Graph, Noise
from . import stem
from .components import Handle
from .denoise import EXTRA_CHANNELS, Array, Call, Feeds, Predict, Segment, caller, combine, unet
from .noise_levels import Levels, timestep_of

Speed = Literal["exact", "balanced", "fast"]
SPEEDS: tuple[Speed, ...] = get_args(Speed)
DEEP, STRIDE = "deep_features", "token_stride"
FULL, SHALLOW = "full", "shallow"
TOKENS = 2048
"""Tokens from which self-attention is worth striding: below, it takes a small part of the time, and each token says more."""
BRANCHES = 8
"""Prompts, negative ones included, whose deep features are kept at once; of more, each is computed whole in every step."""


class Savings(NamedTuple):
    """What is left out; the default is nothing."""

    every: int = 1
    """Steps from one whole call of the U-Net to the next, where there are enough of them."""
    least: int = 3
    """Parts that a picture has at least: few steps stay whole."""
    held: bool = False
    """Whether the negative prompt is asked in those steps alone."""
    strided: bool = False
    """Whether self-attention over `TOKENS` or more is strided."""


TABLE: Mapping[Speed, Savings] = MappingProxyType(
    {
        "exact": Savings(),
        "balanced": Savings(every=3, least=4, held=True),
        "fast": Savings(every=5, least=3, held=True, strided=True),
    }
)
"""Points of the measured Pareto front (benchmarks/speed.md). On the demo model neither loses a point of prompt fidelity, where 1 and 3
are allowed; what grows with `every` is how far the pictures move from the exact ones at the same seed."""


def find(name: str) -> Speed:
    """The speed of that name.

    Raises:
        RequestError: there is none.
    """
    for speed in SPEEDS:
        if name == speed:
            return speed
    raise RequestError(f"speed {name!r} is unknown: expected {', '.join(SPEEDS)}")


class Saving(NamedTuple):
    """How one picture is drawn: fresh for each, since both parts remember what they have seen of it."""

    predict: Predict
    held: Segment | None = None
    """For `guidance.guided`."""


def saving(savings: Savings, session: Handle, noise: Noise, sigmas: Levels, size: tuple[int, int]) -> Saving:
    """The U-Net `session` with `savings`, on the way through `sigmas`, for latents of `size` (height, width).

    A bundle without the graphs for it can save calls for the negative prompt alone.
    """
    parts, exact = session.parts, savings == Savings()
    if exact and not (stem.NAME in parts and stem.pays(session.components)):
        return Saving(unet(session, noise))
    segment = segments(sigmas, savings.every, savings.least)
    held = segment if savings.held else None
    if not parts.keys() >= {FULL, SHALLOW}:
        return Saving(unet(session, noise), held)
    more: dict[str, NDArray[np.generic]] = {}
    grid = _grid(parts[FULL])
    if grid is not None:
        strided = savings.strided and size[0] * size[1] // grid**2 >= TOKENS
        more[STRIDE] = np.array([2, 2] if strided else [1, 1], np.int64)
    full = stem.Stemmed(parts[stem.NAME], parts[FULL]) if stem.NAME in parts else parts[FULL]
    if exact:
        return Saving(unet(full, noise, more))
    shallow = _with_what_it_takes(parts[SHALLOW], noise)
    return Saving(reusing(caller(full, noise), shallow, more, timestep_of(noise), segment), held)


def _with_what_it_takes(session: Handle, noise: Noise) -> Call:
    """`caller`, given no feeds that the graph has no input for: above the cut there may be nothing that looks at the text."""
    call, names = caller(session, noise), {*session.inputs, EXTRA_CHANNELS}

    def taking(x: Array, sigma: float, feeds: Feeds, more: Feeds) -> Mapping[str, Array]:
        given, further = ({name: value for name, value in one.items() if name in names} for one in (feeds, more))
        return call(x, sigma, given, further)

    return taking


def _grid(handle: Handle) -> int | None:
    return handle.component.grid if isinstance(handle.component, Graph) else None


def notes(speed: Speed, session: Handle) -> tuple[str, ...]:
    """What to tell the user where the bundle of a U-Net cannot give all of `speed`."""
    if TABLE[speed] == Savings() or session.parts.keys() >= {FULL, SHALLOW}:
        return ()
    return (f"speed {speed}: the bundle has no graphs for less work, so only calls for the negative prompt are saved: export again",)


def segments(sigmas: Levels, every: int, least: int) -> Segment:
    """Parts of `every` steps each, but the last of two and the first of what is left: the number, from 1, of that which a sigma lies in.

    They are shorter where there would be fewer than `least`. A whole call shortly before the end is worth more than one in the very
    last step: measured. A sampler that looks ahead to the next step's sigma (Heun's method) begins that part with it; one that goes
    back up in noise goes back to an earlier part, and so gets fresh values.
    """
    steps = len(sigmas) - 1
    every = max(1, min(every, steps // least))
    begins = range(steps) if every == 1 else sorted({0, *range(steps - 2, 0, -every)})
    first = np.asarray(sigmas, np.float64)[list(begins)]
    return lambda sigma: int(np.count_nonzero(first >= sigma * (1.0 - 1e-6)))


@dataclass(frozen=True)
class _Kept:
    """What is remembered of a prompt."""

    feeds: Feeds
    """As long as these arrays live, their identities are theirs alone."""
    segment: int
    time: float
    deep: Array
    before: tuple[float, Array] | None
    """Time and deep features of the whole call before."""

    def at(self, time: float) -> Array:
        """The deep features on the line through the last two whole calls, at most as far on as these lie apart."""
        if self.before is None or self.before[0] == self.time:
            return self.deep
        share = (time - self.time) / (self.time - self.before[0])
        share = min(max(share, 0.0), 1.0)
        return combine((1.0 + share, self.deep), (-share, self.before[1]))


def reusing(full: Call, shallow: Call, more: Feeds, timestep: Callable[[float], float], segment: Segment) -> Predict:
    """Predictions of which one in each segment, for each prompt, is computed whole: `full` gives `deep_features`, `shallow` takes them.

    Prompts are told apart by the identity of their arrays. A text that changes on the way is a new prompt.
    """
    kept: dict[tuple[int, ...], _Kept] = {}

    def predict(x: Array, sigma: float, feeds: Feeds) -> Array:
        key = tuple(id(value) for value in feeds.values())
        known, part, time = kept.pop(key, None), segment(sigma), timestep(sigma)
        if known is not None and known.segment == part:
            kept[key] = known
            return shallow(x, sigma, feeds, {**more, DEEP: known.at(time)})["out_sample"]
        outputs = full(x, sigma, feeds, more)
        kept[key] = _Kept(feeds, part, time, outputs[DEEP], None if known is None else (known.time, known.deep))
        while len(kept) > BRANCHES:
            kept.pop(next(iter(kept)))
        return outputs["out_sample"]

    return predict
