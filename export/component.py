"""A part of the pipeline as a module that can be traced: what goes in and out, under which names, with which weights.

Modules are built without memory for weights: each parameter is one zero, expanded to the parameter's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError
from ..models.families import Config
from .source import Source, Weights

if TYPE_CHECKING:  # torch takes seconds to import: it comes with the module that is traced
    from torch import nn


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; a dimension given by a name is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Component:
    """A part of the pipeline, ready to be traced."""

    name: str
    module: nn.Module
    prefix: str
    """What the module's parameter names have before the name in `weights`."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Weights
    config: Config
    vocabulary: int = 0
    """Token ids lie below this; for text encoders."""

    @property
    def bytes(self) -> int:
        """What the weights take in float32."""
        return 4 * sum(math.prod(shape) for shape in self.weights.shapes.values())


def assembled(
    source: Source,
    name: str,
    module: nn.Module,
    prefix: str,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    weights: Weights,
    config: Config,
    vocabulary: int = 0,
) -> Component:
    """The component `name` of `source`: `module`, built on the meta device, and the `weights` that belong into it.

    Raises:
        BundleError: weights are missing, too many, or of another shape than the config says.
    """
    import torch

    expected = {key.removeprefix(prefix): tuple(value.shape) for key, value in module.state_dict().items()}
    ignored = {key for key in weights.shapes if key.endswith("position_ids")}
    missing, extra = expected.keys() - weights.shapes.keys(), weights.shapes.keys() - expected.keys() - ignored
    if missing or extra:
        what = f"lack {min(missing)!r}" if missing else f"have {min(extra)!r}, which the config knows nothing of"
        raise BundleError(
            f"{source.path}: the weights of {name} {what} ({len(missing)} missing, {len(extra)} unknown): "
            "config and weights do not belong together"
        )
    readers = dict(weights.readers)
    for key, shape in expected.items():
        if weights.shapes[key] != shape:
            if np.prod(weights.shapes[key]) != np.prod(shape):
                raise BundleError(f"{source.path}: {name}: {key} is {weights.shapes[key]}, the config says {shape}")
            readers[key] = _reshaped(weights.readers[key], shape)  # 1×1 convolutions stored for linear layers, and the reverse
    module.load_state_dict({key: torch.zeros(()).expand(value.shape) for key, value in module.state_dict().items()}, assign=True)
    module.eval().requires_grad_(requires_grad=False)
    return Component(name, module, prefix, inputs, outputs, Weights(expected, {key: readers[key] for key in expected}), config, vocabulary)


def _reshaped(read: Callable[[], NDArray[np.float32]], shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
    return lambda: read().reshape(shape)
