"""How evenly a bundle does: what its images are like, group by group.

Every prompt is generated with the same seeds. The images of a prompt are averaged first; a group's mean and interval count prompts, not
images, since the images of one prompt resemble one another. Images that the safety checker hid count as flagged and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ...runtime import pipeline
from ...runtime.request import Request
from ...runtime.result import Result
from ..measure.machine_noise import Machine
from . import image_metrics, prompt_fidelity
from .grouped_prompts import GroupedPrompt

EVERYTHING = ("all", "")
"""The group of all prompts: name and value."""
JUDGED = ("subject", "style", "background")
MEASURES = ("flagged", *JUDGED, "variety", "brightness", "saturation", "detail")
"""Shares of the images, 0 to 1, up to "background"; then means of what `image_metrics` computes."""
SHARES = frozenset(MEASURES[:4])
FEWEST = 5
"""Prompts; below, no interval means anything."""
_Z = 1.959964
"""Of a normal distribution's 95 %."""


class Failure(msgspec.Struct, frozen=True):
    """An image in which the judge saw something else."""

    prompt: str
    seed: int
    part: str
    """subject, style or background."""
    expected: str
    seen: str


class Mean(msgspec.Struct, frozen=True):
    """A measure over the prompts of a group; `low` to `high` is its 95 % interval, None with fewer than `FEWEST` prompts."""

    mean: float
    low: float | None
    high: float | None
    prompts: int


class Group(msgspec.Struct, frozen=True):
    """The images of a group."""

    name: str
    value: str
    prompts: int
    images: int
    measures: dict[str, Mean]
    """By the names of `MEASURES`, where there is something to measure."""


class Measured(msgspec.Struct, frozen=True):
    """What one bundle does under one set of settings."""

    label: str
    model_name: str
    folder: str
    precision: str
    provider: str
    memory: str
    steps: int | None
    speed: str
    safety: str
    """The bundle's safety checker: on, off or none."""
    groups: tuple[Group, ...]
    failures: tuple[Failure, ...]
    seconds: float
    """Mean time of an image."""
    differences: tuple[Group, ...] = ()
    """This minus the first one, prompt by prompt; empty for the first one."""
    notes: tuple[str, ...] = ()


class SpreadReport(msgspec.Struct, frozen=True):
    """Everything that was measured, and how."""

    made_by: str
    date: str
    """UTC, ISO 8601, of the start."""
    machine: Machine
    prompts: int
    seeds: tuple[int, ...]
    measured: tuple[Measured, ...]
    complete: bool = False
    schema: int = 1

    def failure(self) -> str:
        """Why nothing could be measured; empty if something was."""
        return "" if self.measured else "nothing was measured"


Values = Mapping[str, float]
"""Measure → mean over the images of one prompt."""


def judgeable(drawer: pipeline.Pipeline, prompts: Sequence[GroupedPrompt]) -> bool:
    """Whether the judge can look at the images: some prompt says what to expect, and the bundle is the demo model."""
    return drawer.manifest.source.name == prompt_fidelity.MODEL and any(one.expect is not None for one in prompts)


def measure(
    drawer: pipeline.Pipeline, prompts: Sequence[GroupedPrompt], seeds: Sequence[int], template: Request, tick: Callable[[], None]
) -> tuple[list[Values], list[Failure], Result, float]:
    """Generate each of `prompts` with each of the consecutive `seeds`, otherwise as `template` says.

    `tick` is called after each prompt.

    Returns:
        The measures of each prompt, what the judge missed, the last result, and the mean seconds of an image.

    Raises:
        RequestError: a size that the judge cannot look at.
        DiffusetteError: any error of generating.
    """
    judges = judgeable(drawer, prompts)
    width, height = drawer.size_of(template)
    if judges and (width % prompt_fidelity.SIDE or height % prompt_fidelity.SIDE):
        raise RequestError(f"size {width}×{height}: the judge looks at multiples of {prompt_fidelity.SIDE} pixels: use 128")
    values: list[Values] = []
    failures: list[Failure] = []
    times: list[float] = []
    result = None
    for one in prompts:
        result = drawer.generate(replace(template, prompt=one.prompt, seed=seeds[0], count=len(seeds)))
        times.append(result.timings["total"] / len(seeds))
        found, missed = _looked_at(one, result, judges=judges)
        values.append(found)
        failures += missed
        tick()
    assert result is not None
    return values, failures, result, fmean(times[1:] or times)


def _looked_at(one: GroupedPrompt, result: Result, *, judges: bool) -> tuple[Values, list[Failure]]:
    """The measures of one prompt's images, and what the judge missed in them."""
    shown = [(picture.seed, np.asarray(picture.image.convert("RGB"))) for picture in result.pictures if not picture.flagged]
    found: dict[str, float] = {} if result.safety != "on" else {"flagged": 1 - len(shown) / len(result.pictures)}
    if not shown:
        return found, []
    pixels = [image for _, image in shown]
    apart = image_metrics.variety(pixels)
    found |= {} if apart is None else {"variety": apart}
    for name in ("brightness", "saturation", "detail"):
        found[name] = fmean(getattr(image_metrics, name)(image) for image in pixels)
    if not judges or one.expect is None:
        return found, []
    failures = _missed(one, [seed for seed, _ in shown], pixels)
    for part in JUDGED:
        if getattr(one.expect, part) is not None:
            found[part] = 1 - sum(failure.part == part for failure in failures) / len(shown)
    return found, failures


def _missed(one: GroupedPrompt, seeds: Sequence[int], pixels: Sequence[NDArray[np.uint8]]) -> list[Failure]:
    wanted = [(place, part, getattr(one.expect, part)) for place, part in enumerate(JUDGED)]
    return [
        Failure(one.prompt, seed, part, expected, seen[place])
        for seed, seen in zip(seeds, prompt_fidelity.look(pixels), strict=True)
        for place, part, expected in wanted
        if expected is not None and seen[place] != expected
    ]


def groups(prompts: Sequence[GroupedPrompt], values: Sequence[Values], images: int, *, differ: bool = False) -> tuple[Group, ...]:
    """Average `values`, one for each of `prompts` with `images` images each, over each group and over everything.

    With `differ`, the values are differences, for which an interval of shares means nothing.
    """
    places: dict[tuple[str, str], list[int]] = {EVERYTHING: list(range(len(prompts)))}
    for name in dict.fromkeys(name for one in prompts for name in one.groups):
        for place, one in enumerate(prompts):
            if name in one.groups:
                places.setdefault((name, one.groups[name]), []).append(place)
    return tuple(
        Group(name, value, len(members), images * len(members), _means([values[member] for member in members], differ=differ))
        for (name, value), members in places.items()
    )


def differences(values: Sequence[Values], first: Sequence[Values]) -> list[Values]:
    """`values` minus `first`, prompt by prompt, where both have the measure."""
    return [{name: one[name] - other[name] for name in one if name in other} for one, other in zip(values, first, strict=True)]


def _means(values: Sequence[Values], *, differ: bool) -> dict[str, Mean]:
    found: dict[str, Mean] = {}
    for name in MEASURES:
        sample = [one[name] for one in values if name in one]
        if sample:
            found[name] = share(sample) if name in SHARES and not differ else mean(sample)
    return found


def mean(sample: Sequence[float]) -> Mean:
    """The mean of `sample` and its 95 % interval by Student's t."""
    middle = fmean(sample)
    if len(sample) < FEWEST:
        return Mean(middle, None, None, len(sample))
    half = _student(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))
    return Mean(middle, middle - half, middle + half, len(sample))


def share(sample: Sequence[float]) -> Mean:
    """The mean of `sample`, shares from 0 to 1, and its 95 % interval after Wilson 1927, which holds near 0 and 1 too."""
    number, middle = len(sample), fmean(sample)
    if number < FEWEST:
        return Mean(middle, None, None, number)
    square = _Z * _Z / number
    centre = (middle + square / 2) / (1 + square)
    half = _Z * math.sqrt(middle * (1 - middle) / number + square / (4 * number)) / (1 + square)
    return Mean(middle, max(0.0, centre - half), min(1.0, centre + half), number)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 1 % from 4 degrees of `freedom` on (Abramowitz & Stegun 1964, 26.7.5)."""
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
