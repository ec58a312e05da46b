"""From a torch module to an ONNX graph whose weights are still on disk.

Tracing works on placeholders; afterwards each initializer becomes a lazy tensor that reads its weight when it is asked
for. So a graph of any size costs no memory, and passes and writers take one tensor at a time.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript import optimizer

from ..models.errors import NumericalError
from .component import Component
from .reference import examples, tensors
from .source import Weights

OPSET = 23
"""The first with Attention: torch's attention stays one node, for the passes of each target to lower."""


def trace(component: Component) -> ir.Model:
    """The graph of `component` at opset 23 with free dimensions, simplified; initializers keep the names of the weights.

    Raises:
        NumericalError: torch cannot trace the module, or specialised a dimension that has to stay free.
    """
    ports = component.inputs
    # Odd sizes, so that the traced graph takes its up-sampling sizes from the skip connections and every size works.
    size = (48, 80) if component.name == "vae_encoder" else (19, 21)
    feeds = examples(component, size, batch=2, tokens=7, timestep=500.0, seed=0)
    arguments = tensors(feeds[port.name] for port in ports)
    shapes = [{axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in ports]
    if component.name == "unet" and len(shapes) > 3:
        shapes = [*shapes[:3], tuple(shapes[3:])]  # the wrapper's additional inputs come as one *argument
    with _quiet(), torch.no_grad():
        # Exported here, since torch.onnx.export falls from non-strict back to strict tracing on free sizes, which takes thrice the time.
        exported = torch.export.export(component.module, arguments, dynamic_shapes=tuple(shapes), strict=False)
        program = cast("Any", torch.onnx).export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in ports],
            output_names=[port.name for port in component.outputs],
        )
    model: ir.Model = program.model
    _name_ports(model, component)
    _simplify(model)
    _attach(model, component.prefix, component.weights)
    _name_dimensions(model, component)
    return model


def _name_ports(model: ir.Model, component: Component) -> None:
    for value, port in zip(model.graph.outputs, component.outputs, strict=True):
        value.name = port.name


def _simplify(model: ir.Model) -> None:
    """Folds constants, with the weights passed off as inputs meanwhile: a placeholder must never be folded."""
    weights = list(model.graph.initializers.values())
    for value in weights:
        del model.graph.initializers[value.name or ""]
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.optimize_ir(model)
    for value in weights:
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.initializers.add(value)


def _attach(model: ir.Model, prefix: str, weights: Weights) -> None:
    """Gives each initializer its weight's name and its weight, unread."""
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None:
            continue
        del model.graph.initializers[value.name or ""]
        value.name = (value.name or "").removeprefix(prefix)
        if value.name not in weights.shapes:
            raise NumericalError(f"the traced graph needs {value.name!r}, which is no weight of the model: a buffer cannot be exported")
        value.const_value = lazy(value.name, weights.shapes[value.name], partial(weights.read, value.name))
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
        model.graph.initializers.add(value)


def lazy(name: str, shape: Sequence[int], read: Callable[[], NDArray[Any]], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """A tensor that calls `read` each time it is asked for, and keeps nothing."""
    return ir.LazyTensor(lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)


def _name_dimensions(model: ir.Model, component: Component) -> None:
    """Free dimensions get their names everywhere: torch's symbol for the height becomes `height`, also inside of expressions."""
    names: dict[str, str] = {}
    for value, port in zip(model.graph.inputs, component.inputs, strict=True):
        for axis, dim in enumerate(port.shape):
            got = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, int) != isinstance(got, int):
                raise NumericalError(f"{component.name}: tracing fixed dimension {axis} of {port.name} to {got}, which has to stay free")
            if isinstance(dim, str):
                names[str(got)] = dim
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed(str(dim), names) for dim in value.shape])
    for value, port in (*zip(model.graph.inputs, component.inputs, strict=True), *zip(model.graph.outputs, component.outputs, strict=True)):
        value.shape = ir.Shape(port.shape)


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), expression)


@contextmanager
def _quiet() -> Generator[None]:
    """Torch's exporter talks about its own internals: about torchvision, deprecated calls, and what it did to dimensions."""
    root = logging.getLogger("torch.onnx")
    level = root.level
    root.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.setLevel(level)
