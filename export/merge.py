"""LoRAs added to weights for good, before anything else is done with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import calibrate
from .component import Component
from .source import Array, Source, modules


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it works."""

    path: Path
    weight: float = 1.0


def merge(component: Component, source: Source, loras: Sequence[Lora]) -> Component:
    """`component` with weights W + weight · ΔW of every LoRA that changes it; they are added when a weight is read.

    Raises:
        BundleError: a file that is damaged or no safetensors file.
        RequestError: no LoRA, or none for this architecture.
    """
    readers = dict(component.weights.readers)
    for lora in loras:
        for (name, module), delta in calibrate.read_lora(lora.path, modules(source)).items():
            key = f"{module}.weight"
            if name == component.name and key in readers:
                readers[key] = _sum(readers[key], delta, component.weights.shapes[key], lora.weight)
    return replace(component, weights=replace(component.weights, readers=readers))


def _sum(
    read: Callable[[], Array], delta: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...], weight: float
) -> Callable[[], Array]:
    return lambda: np.add(read(), np.float32(weight) * delta(shape), dtype=np.float32)
