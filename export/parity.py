"""The gate: an exported component is compared with torch in float32, and published only if it agrees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import NumericalError
from ..models.manifest import Precision

BARS: Mapping[Precision, float] = MappingProxyType({"fp32": 100.0, "fp16": 45.0, "int8": 24.0, "int4": 18.0})
"""The signal-to-noise ratio in dB that a component of each precision has to reach."""
PERFECT = 200.0
"""What equal arrays get, since JSON has no infinity."""


@dataclass(frozen=True)
class Parity:
    """How a component compares with torch."""

    db: float
    """The worst of all outputs and inputs."""
    outputs: Mapping[str, float]
    """The worst for each output."""


def snr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """10·log10(|reference|² / |reference - other|²) in dB; NaN anywhere in `other` gives -PERFECT."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return -PERFECT
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    if noise == 0.0:
        return PERFECT
    return max(-PERFECT, min(PERFECT, 10.0 * math.log10(max(signal, 1e-300) / noise)))


def compare(session: Any, feeds: Sequence[Mapping[str, NDArray[Any]]], expected: Iterable[Mapping[str, NDArray[Any]]]) -> Parity:
    """How the outputs of `session` (something with `run(feeds)`, or with `run_all`) compare with the expected ones."""
    worst: dict[str, float] = {}
    results: Iterable[Mapping[str, NDArray[Any]]] = session.run_all(feeds) if hasattr(session, "run_all") else map(session.run, feeds)
    for got, wanted in zip(results, expected, strict=True):
        for name, value in wanted.items():
            worst[name] = min(worst.get(name, PERFECT), snr(value, got[name]))
    return Parity(round(min(worst.values()), 2), {name: round(value, 2) for name, value in worst.items()})


def require(name: str, precision: Precision, parity: Parity, bar: float, worst_layers: Iterable[str] = ()) -> None:
    """Lets `name` pass, or not.

    Raises:
        NumericalError: below the bar; the message has the worst outputs and layers.
    """
    if parity.db >= bar:
        return
    output = min(parity.outputs, key=lambda key: parity.outputs[key])
    layers = ", ".join(worst_layers)
    raise NumericalError(
        f"{name} in {precision}: {parity.db:.1f} dB against torch (worst output {output}), expected at least {bar:.0f} dB: not published"
        + (f"; the layers that cost most: {layers}" if layers else "")
        + ("" if precision == "fp32" else "; use a higher --precision for it, or prompts closer to what it draws with --prompts")
    )
