"""Measure what rounding each layer costs at the output of the whole graph, one layer at a time.

The float graph runs once per layer, with the layer's rounding error added to its output; the error comes from the layer in the quantized
graph. Errors of different layers are nearly uncorrelated, so their powers add up: 1 / SNR of the whole graph is about the sum of 1 / SNR
over layers, on one input. On the worst of many inputs it is higher (by 3 dB on the demo model, by far more on random weights of SD 1.5's
size), so only the order and the ratios are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...models.manifest import Tensor
from ..graphs import save
from ..graphs.run_in_pieces import PIECE, Feeds, Pieces, Values
from .layers import Layer
from .ranges import Array

SIDE = 16
"""Side in pixels to which images and latents are cropped for large components: the cost of rounding hardly depends on it."""
LARGE = 1_000_000_000
"""Bytes of weights from which a component is large."""
MAX_LAYERS = 400
"""Number of layers to measure, those with the lowest SNR first: each takes a run of the graph."""


@dataclass(frozen=True)
class Cost:
    """The cost of quantizing a layer."""

    noise: float
    """Noise that its rounding adds to the graph's output, as a fraction of the signal's power."""
    work: float
    """Multiplications per call, which are slower in float."""


def costs(
    floats: Path,
    quantized: Path,
    layers: Sequence[Layer],
    factors: Mapping[str, Array],
    feeds: Sequence[Feeds],
    open_graph: Callable[..., Any],
    limit: int = PIECE,
) -> dict[str, Cost]:
    """Return the cost of each of `layers` whose input is not a constant: of several outputs the worst, the mean over `feeds`.

    `floats` is the folder of the float graph, `quantized` that of the quantized one. `factors` (see `smooth_quant.factors`) are the
    factors by which channels of the quantized layers were multiplied.
    """
    fed = [layer for layer in layers if layer.input.producer() is not None or layer.input.is_graph_input()]
    by_output = {layer.output.name or "": layer for layer in fed}
    watched = Pieces(floats, open_graph, watched={*(layer.input.name or "" for layer in fed), *by_output}, limit=limit)
    nudged = Pieces(floats, open_graph, nudged=by_output, limit=limit)
    rounded = _QuantizedLayers(quantized, open_graph)
    found = [_costs(watched, nudged, rounded, by_output, factors, dict(feed)) for feed in feeds]
    watched.close()
    nudged.close()
    return {layer.name: Cost(sum(costs[layer.name].noise for costs in found) / len(found), found[0][layer.name].work) for layer in fed}


def _costs(
    watched: Pieces, nudged: Pieces, rounded: _QuantizedLayers, by_output: Mapping[str, Layer], factors: Mapping[str, Array], feed: Values
) -> dict[str, Cost]:
    """Run piece by piece, with one state for each layer that was rounded so far, so that each piece is opened once."""
    exact, perturbed, tensors, work = feed, dict[str, Values](), dict(feed), dict[str, float]()
    for number in range(len(nudged)):
        _, seen = watched.step(number, exact)
        tensors |= seen
        watched.close()
        after = {name: nudged.step(number, state)[0] for name, state in perturbed.items()}
        for output, layer in by_output.items():
            if nudged.piece_of[output] == number:
                delta = _rounded(rounded, layer, factors, tensors) - tensors[output]
                channels = layer.weight_shape[layer.axis]
                work[layer.name] = float(layer.elements * delta.size / channels) if layer.node.op_type != "Gather" else float(delta.size)
                after[layer.name] = nudged.step(number, exact, {output: delta})[0]
        exact, perturbed = nudged.step(number, exact)[0], after
        inputs = {layer.input.name for output, layer in by_output.items() if nudged.piece_of[output] > number}
        tensors = {name: array for name, array in tensors.items() if name in inputs}
    return {
        name: Cost(max(noise(exact[output], state[output]) for output in nudged.outputs), work[name]) for name, state in perturbed.items()
    }


def noise(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Return |reference - other|² / |reference|²."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    return float(np.square(reference.astype(np.float64) - other).sum()) / max(signal, 1e-300)


def db(power: float) -> float:
    """Return the signal-to-noise ratio in dB for noise of the given power, as a fraction of the signal's."""
    return float(-10 * np.log10(max(power, 1e-20)))


def _rounded(quantized: _QuantizedLayers, layer: Layer, factors: Mapping[str, Array], tensors: Feeds) -> NDArray[Any]:
    """Return the output of the quantized layer for the float input, in the scale of the float graph."""
    name = layer.input.name or ""
    x = tensors[name]
    if f"{layer.name}.input_factors" in factors:
        x = x / factors[f"{layer.name}.input_factors"]
    y = quantized.run(name, layer.output.name or "", x)
    if f"{layer.name}.output_factors" in factors:
        y = y / factors[f"{layer.name}.output_factors"]
    return y


def crop(feed: Feeds, inputs: Mapping[str, Tensor], side: int = SIDE) -> Values:
    """Crop each image to `side` × `side` pixels at its center, if the shape in `inputs` leaves its size free."""
    cropped: Values = {}
    for name, array in feed.items():
        if array.ndim == 4 and all(isinstance(size, str) for size in inputs[name].shape[2:]):
            top, left = (max(0, (size - side) // 2) for size in array.shape[2:])
            array = np.ascontiguousarray(array[:, :, top : top + side, left : left + side])  # noqa: PLW2901  # the same image, smaller
        cropped[name] = array
    return cropped


class _QuantizedLayers:
    """Runs single layers of the quantized graph in `folder`."""

    def __init__(self, folder: Path, open_graph: Callable[..., Any]) -> None:
        self._folder, self._open_graph = folder, open_graph
        self._model = cast("Any", onnx).load(str(folder / save.GRAPH), load_external_data=False)
        self._producers = {name: node for node in self._model.graph.node for name in node.output}
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def run(self, name: str, output: str, x: NDArray[Any]) -> NDArray[Any]:
        """Return the tensor `output`, computed from `x` as the tensor `name`."""
        nodes: list[Any] = []
        self._collect(output, name, nodes, set())
        used = {value for node in nodes for value in node.input}
        dtype = cast("int", helper.np_dtype_to_tensor_dtype(x.dtype))
        shape = [f"dimension_{axis}" for axis in range(x.ndim)]
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info(name, dtype, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [tensor for weight, tensor in self._weights.items() if weight in used],
        )
        path = self._folder / "piece-layer.onnx"
        try:
            model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
            path.write_bytes(model.SerializeToString())
            session = self._open_graph(path, lean=True)
        finally:
            path.unlink(missing_ok=True)
        result: NDArray[Any] = session.run({name: x})[output]
        session.close()
        return result

    def _collect(self, value: str, stop: str, nodes: list[Any], seen: set[str]) -> None:
        """Append the nodes between `stop` and `value` to `nodes`, in order."""
        node = self._producers.get(value)
        if value == stop or node is None or node.output[0] in seen:
            return
        seen.add(node.output[0])
        for name in node.input:
            self._collect(name, stop, nodes, seen)
        nodes.append(node)
