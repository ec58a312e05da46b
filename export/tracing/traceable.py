"""A component of the pipeline as a traceable module, with the names of its inputs, outputs and weights.

Modules are built without memory for weights: each parameter is a single zero, expanded to the parameter's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...models.errors import BundleError
from ...models.families import Config
from ..sources.diffusers_folder import Source, Weights

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import nn


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; a dimension given as a name is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Component:
    """A component of the pipeline, ready to be traced."""

    name: str
    module: nn.Module
    prefix: str
    """Prefix of the module's parameter names that the names in `weights` lack."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Weights
    config: Config
    vocabulary: int = 0
    """Upper bound of token ids, for text encoders."""
    unused: tuple[str, ...] = ()
    """Tensors of the source that the module has no place for."""

    @property
    def bytes(self) -> int:
        """Bytes of the weights in float32."""
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
    """The component `name` of `source`: `module`, built on the meta device, with its `weights`.

    Raises:
        BundleError: weights are missing, unknown, or of another shape than in the config.
    """
    import torch

    expected = {key.removeprefix(prefix): tuple(value.shape) for key, value in module.state_dict().items()}
    missing = expected.keys() - weights.shapes.keys()
    if missing:
        raise BundleError(
            f"{source.path}: the weights of {name} lack {min(missing)!r} ({len(missing)} missing): config and weights do not match"
        )
    readers = dict(weights.readers)
    for key, shape in expected.items():
        if weights.shapes[key] != shape:
            if _without_ones(weights.shapes[key]) != _without_ones(shape):
                raise BundleError(f"{source.path}: {name}: {key} has shape {weights.shapes[key]}, but the config expects {shape}")
            readers[key] = _reshaped(weights.readers[key], shape)  # 1×1 convolutions stored as linear layers, and the reverse
    module.load_state_dict({key: torch.zeros(()).expand(value.shape) for key, value in module.state_dict().items()}, assign=True)
    module.eval().requires_grad_(requires_grad=False)
    unused = tuple(sorted(key for key in weights.shapes.keys() - expected.keys() if not key.endswith(_HARMLESS)))
    kept = Weights(expected, {key: readers[key] for key in expected})
    return Component(name, module, prefix, inputs, outputs, kept, config, vocabulary, unused)


_HARMLESS = ("position_ids", "logit_scale", "text_projection.weight")
"""Ends of names of tensors that change no image: they count tokens, or serve the comparison of texts with images. Where a text encoder has
a projection, it is expected, and not left over."""


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without the sides of a 1×1 kernel."""
    return shape[:2] if shape[2:] == (1, 1) else shape


@contextmanager
def foreign_errors(where: Path) -> Generator[None]:
    """While a library builds a module from the config `where`: whatever it complains about becomes one line with the file's name.

    Raises:
        BundleError: in place of any other exception.
    """
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split())[:300]
        raise BundleError(f"{where}: nothing can be built from it ({type(error).__name__}: {what}); download the model again") from error


def _reshaped(read: Callable[[], NDArray[np.float32]], shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
    return lambda: read().reshape(shape)
