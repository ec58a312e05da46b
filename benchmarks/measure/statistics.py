"""Statistics of repeated timings: a summary of one series, and the ratio of two series taken in pairs.

The names are optimum-benchmark's where it has one: count, total, mean, p50, p90, p95, p99, stdev, stdev_.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Latency(msgspec.Struct, frozen=True):
    """A series of timings in seconds. With few of them, p99 is the slowest one or close to it."""

    count: int
    total: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    stdev: float
    """Sample standard deviation (n - 1); 0 for a single timing."""
    stdev_: float
    """`stdev` in percent of the mean."""


class Ratio(msgspec.Struct, frozen=True):
    """Time of A per second of B: below 1, A is faster."""

    ratio: float
    low: float
    high: float
    """`low` to `high` is the 95 % confidence interval."""
    pairs: int


def latency(seconds: Sequence[float]) -> Latency | None:
    """The summary of `seconds`; percentiles interpolate linearly, as NumPy's do. None for no timing at all."""
    if not seconds:
        return None
    values = np.asarray(seconds, dtype=np.float64)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    mean = float(values.mean())
    stdev = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Latency(len(values), float(values.sum()), mean, p50, p90, p95, p99, stdev, 100.0 * stdev / mean if mean else 0.0)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The median of the ratios a[i] / b[i], with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Both timings of a pair were taken one right after the other, so that what slows the machine down for a while slows both.
    The resampling is seeded: the same timings give the same interval.
    """
    ratios = np.log(np.asarray(a, dtype=np.float64) / np.asarray(b, dtype=np.float64))
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = (math.exp(float(value)) for value in np.percentile(medians, (tail, 100.0 - tail)))
    return Ratio(math.exp(float(np.median(ratios))), low, high, len(ratios))
