"""Progress that tells the truth: shares and seconds left from measured times.

Work is counted in units: a step at the first pass's size is one unit, a step of a larger pass is as many as it has more pixels. Finishing
an image (decoding and saving) has a time of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .records import Phase, Progress

_OLD = 0.7
"""Weight of what was known before, against a new measurement."""
_GUESS = 2.0
"""Finishing an image in units, until it was measured."""


class Memory:
    """Seconds that earlier jobs took, by model and size: a unit, and finishing an image."""

    def __init__(self) -> None:
        self.unit: dict[tuple[object, ...], float] = {}
        self.finishing: dict[tuple[object, ...], float] = {}


class Meter:
    """Measures one job."""

    def __init__(self, memory: Memory, key: tuple[object, ...], count: int, passes: Sequence[tuple[int, int]]) -> None:
        """Args: what earlier jobs took; a key for jobs that take as long; images; (steps, pixels) of each pass."""
        self._memory = memory
        self._key = key
        self._count = count
        self._units = [pixels / passes[0][1] for steps, pixels in passes for _ in range(steps)]
        self._whole = sum(self._units)
        self._since = time.perf_counter()
        self._first = True
        self._done = 0.0

    def wait(self) -> None:
        """The time until now belongs to nothing that is measured."""
        self._since = time.perf_counter()

    def step(self, number: int) -> None:
        """Step `number`, from 1, of an image is done."""
        seconds = self._lap() / self._units[min(number, len(self._units)) - 1]
        if not self._first or self._key not in self._memory.unit:  # the first step of a job may also open the model's session
            _learn(self._memory.unit, self._key, seconds)
        self._first = False

    def finished(self) -> None:
        """An image is decoded and saved."""
        _learn(self._memory.finishing, self._key, self._lap())
        self._first = True

    def at(self, phase: Phase, image: int, step: int) -> Progress:
        """The progress after `step` steps of image number `image`."""
        unit = self._memory.unit.get(self._key)
        finishing = self._memory.finishing.get(self._key, _GUESS * (unit or 1.0))
        each = self._whole * (unit or 1.0) + finishing
        spent = image * each + sum(self._units[:step]) * (unit or 1.0)
        whole = self._count * each
        self._done = max(self._done, min(1.0, spent / whole))
        eta = None if unit is None else round(max(0.0, whole - spent), 3)
        return Progress(phase, image, self._count, step, len(self._units), round(self._done, 4), eta)

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds


def _learn(known: dict[tuple[object, ...], float], key: tuple[object, ...], seconds: float) -> None:
    known[key] = seconds if key not in known else _OLD * known[key] + (1 - _OLD) * seconds
