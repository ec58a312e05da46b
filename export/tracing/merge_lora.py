"""Merge LoRAs into the weights before tracing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import runtime_bridge
from ..sources.diffusers_folder import Array, Source, modules
from .traceable import Component


@dataclass(frozen=True)
class Lora:
    """A LoRA file and its strength."""

    path: Path
    weight: float = 1.0


def merge(component: Component, source: Source, loras: Sequence[Lora]) -> Component:
    """Return `component` with weights W + weight · ΔW for every LoRA that changes it; the sum is computed when a weight is read.

    Raises:
        BundleError: not a safetensors file, or damaged.
        RequestError: not a LoRA, or a LoRA for another architecture.
    """
    readers = dict(component.weights.readers)
    for lora in loras:
        for (name, module), delta in runtime_bridge.read_lora(lora.path, modules(source)).items():
            key = f"{module}.weight"
            if name == component.name and key in readers:
                readers[key] = _sum(readers[key], delta, component.weights.shapes[key], lora.weight)
    return replace(component, weights=replace(component.weights, readers=readers))


def _sum(read: Callable[[], Array], delta: runtime_bridge.Delta, shape: tuple[int, ...], weight: float) -> Callable[[], Array]:
    return lambda: np.add(read(), np.float32(weight) * delta(shape, read), dtype=np.float32)
