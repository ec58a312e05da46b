"""The quality gate: compare an exported component with torch in float32, and publish it only if it passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.errors import NumericalError
from ...models.manifest import Precision

BARS: Mapping[Precision, float] = MappingProxyType({"fp32": 100.0, "fp16": 45.0, "int8": 24.0, "int4": 18.0})
"""Minimum signal-to-noise ratio of a component, in dB, by precision."""
PERFECT = 200.0
"""SNR of equal arrays in dB, because JSON has no infinity."""


@dataclass(frozen=True)
class Parity:
    """Result of comparing a component with torch."""

    db: float
    """Lowest SNR in dB over all outputs and inputs."""
    outputs: Mapping[str, float]
    """Lowest SNR in dB over all inputs, by output."""


def snr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """10·log10(|reference|² / |reference - other|²) in dB; -PERFECT if the shapes differ or `other` has NaN or Inf."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return -PERFECT
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    if noise == 0.0:
        return PERFECT
    return max(-PERFECT, min(PERFECT, 10.0 * math.log10(max(signal, 1e-300) / noise)))


def compare(session: Any, feeds: Sequence[Mapping[str, NDArray[Any]]], expected: Iterable[Mapping[str, NDArray[Any]]]) -> Parity:
    """Run `session` (anything with `run(feeds)` or `run_all`) on `feeds` and compare its outputs with `expected`."""
    worst: dict[str, float] = {}
    results: Iterable[Mapping[str, NDArray[Any]]] = session.run_all(feeds) if hasattr(session, "run_all") else map(session.run, feeds)
    for outputs, references in zip(results, expected, strict=True):
        for name, reference in references.items():
            worst[name] = min(worst.get(name, PERFECT), snr(reference, outputs[name]))
    return Parity(round(min(worst.values()), 2), {name: round(value, 2) for name, value in worst.items()})


def require(name: str, precision: Precision, parity: Parity, bar: float, worst_layers: Iterable[str] = ()) -> None:
    """Check that the component `name` reaches `bar` (dB).

    Raises:
        NumericalError: it does not; the message has the worst output and `worst_layers`.
    """
    if parity.db >= bar:
        return
    output = min(parity.outputs, key=lambda key: parity.outputs[key])
    layers = ", ".join(worst_layers)
    raise NumericalError(
        f"{name} in {precision}: {parity.db:.1f} dB against torch (worst output {output}), expected at least {bar:.0f} dB: not published"
        + (f"; layers that cost the most quality: {layers}" if layers else "")
        + ("" if precision == "fp32" else "; try a higher --precision for it, or --prompts with prompts closer to its images")
    )
