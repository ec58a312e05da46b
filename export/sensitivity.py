"""What each layer's rounding costs at the output of the whole graph: measured, one layer at a time.

The float graph runs once for each layer, with the difference that 8 (or 4) bits make to this layer's output added to it; the
difference comes from the layer as it stands in the quantized graph. Errors of different layers hardly know of one another, so
their powers add up: 1 / SNR of the whole is about the sum of 1 / SNR over layers, on this input. On the worst of many inputs it
is more (by 3 dB on the demo model, by far more on random weights of SD 1.5's size), so what is used is the order and the ratio.
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

from ..models.manifest import Tensor
from . import write
from .layers import Layer
from .pieces import PIECE, Feeds, Pieces, Values
from .ranges import Array

SIDE = 16
"""Where weights are large, pictures and latents are cut to this many pixels a side: what is lost by rounding hardly depends on it."""
LARGE = 1_000_000_000
"""Bytes of weights from which they are."""
MOST = 400
"""Layers that are measured at most, those first that lose most by themselves: a run of the graph each."""


@dataclass(frozen=True)
class Cost:
    """What a layer costs in few bits, and what it would cost otherwise."""

    noise: float
    """What its rounding brings to the output, as a fraction of the signal's power."""
    work: float
    """Multiplications a call: what becomes slower in float."""


def costs(
    floats: Path,
    made: Path,
    layers: Sequence[Layer],
    factors: Mapping[str, Array],
    feeds: Sequence[Feeds],
    open_graph: Callable[..., Any],
    limit: int = PIECE,
) -> dict[str, Cost]:
    """What each of `layers` costs; those are left out whose input is a constant.

    `floats` is the folder of the float graph, `made` that of the quantized one, whose layers take and give what `factors`
    (as `equalize.factors` has them) say. Where there are several outputs or feeds, it is the mean over feeds of the worst output.
    """
    fed = [layer for layer in layers if layer.input.producer() is not None or layer.input.is_graph_input()]
    known = {layer.output.name or "": layer for layer in fed}
    looking = Pieces(floats, open_graph, watched={*(layer.input.name or "" for layer in fed), *known}, limit=limit)
    nudged = Pieces(floats, open_graph, nudged=known, limit=limit)
    quantized = _Quantized(made, open_graph)
    found = [_costs(looking, nudged, quantized, known, factors, dict(feed)) for feed in feeds]
    looking.close()
    nudged.close()
    return {layer.name: Cost(sum(one[layer.name].noise for one in found) / len(found), found[0][layer.name].work) for layer in fed}


def _costs(
    looking: Pieces, nudged: Pieces, quantized: _Quantized, known: Mapping[str, Layer], factors: Mapping[str, Array], start: Values
) -> dict[str, Cost]:
    """Piece by piece, with one state for each layer that has been touched so far, so that each piece is opened once."""
    plain, touched, given, work = start, dict[str, Values](), dict(start), dict[str, float]()
    for place in range(len(nudged)):
        _, seen = looking.step(place, plain)
        given |= seen
        looking.close()
        after = {name: nudged.step(place, state)[0] for name, state in touched.items()}
        for output, layer in known.items():
            if nudged.places[output] == place:
                delta = _rounded(quantized, layer, factors, given) - given[output]
                channels = layer.weight_shape[layer.axis]
                work[layer.name] = float(layer.elements * delta.size / channels) if layer.node.op_type != "Gather" else float(delta.size)
                after[layer.name] = nudged.step(place, plain, {output: delta})[0]
        plain, touched = nudged.step(place, plain)[0], after
        inputs = {layer.input.name for output, layer in known.items() if nudged.places[output] > place}
        given = {name: array for name, array in given.items() if name in inputs}
    return {name: Cost(max(noise(plain[one], state[one]) for one in nudged.outputs), work[name]) for name, state in touched.items()}


def noise(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """|reference - other|² / |reference|²."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    return float(np.square(reference.astype(np.float64) - other).sum()) / max(signal, 1e-300)


def db(power: float) -> float:
    """A signal-to-noise ratio in dB, from the noise as a fraction of the signal."""
    return float(-10 * np.log10(max(power, 1e-20)))


def _rounded(quantized: _Quantized, layer: Layer, factors: Mapping[str, Array], given: Feeds) -> NDArray[Any]:
    """What the quantized layer makes of the float input, both as they would be without equalization."""
    name = layer.input.name or ""
    x = given[name]
    if f"{layer.name}.input_factors" in factors:
        x = x / factors[f"{layer.name}.input_factors"]
    y = quantized.run(name, layer.output.name or "", x)
    if f"{layer.name}.output_factors" in factors:
        y = y / factors[f"{layer.name}.output_factors"]
    return y


def cut(feed: Feeds, inputs: Mapping[str, Tensor], side: int = SIDE) -> Values:
    """The middle of each picture whose size `inputs` leave free, `side` pixels along each side."""
    found: Values = {}
    for name, array in feed.items():
        if array.ndim == 4 and all(isinstance(size, str) for size in inputs[name].shape[2:]):
            top, left = (max(0, (size - side) // 2) for size in array.shape[2:])
            array = np.ascontiguousarray(array[:, :, top : top + side, left : left + side])  # noqa: PLW2901  # the same, smaller
        found[name] = array
    return found


class _Quantized:
    """Single layers of the quantized graph in `folder`."""

    def __init__(self, folder: Path, open_graph: Callable[..., Any]) -> None:
        self._folder, self._open_graph = folder, open_graph
        self._model = cast("Any", onnx).load(str(folder / write.GRAPH), load_external_data=False)
        self._makers = {name: node for node in self._model.graph.node for name in node.output}
        self._weights = {one.name: one for one in self._model.graph.initializer}

    def run(self, name: str, output: str, x: NDArray[Any]) -> NDArray[Any]:
        """The tensor `output`, from `x` as the tensor `name`."""
        nodes: list[Any] = []
        self._collect(output, name, nodes, set())
        used = {one for node in nodes for one in node.input}
        kind = cast("int", helper.np_dtype_to_tensor_dtype(x.dtype))
        shape = [f"dimension_{axis}" for axis in range(x.ndim)]
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info(name, kind, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [tensor for one, tensor in self._weights.items() if one in used],
        )
        path = self._folder / "piece-layer.onnx"
        try:
            made = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
            path.write_bytes(made.SerializeToString())
            session = self._open_graph(path, lean=True)
        finally:
            path.unlink(missing_ok=True)
        result: NDArray[Any] = session.run({name: x})[output]
        session.close()
        return result

    def _collect(self, value: str, stop: str, nodes: list[Any], seen: set[str]) -> None:
        """The nodes between `stop` and `value`, in order."""
        node = self._makers.get(value)
        if value == stop or node is None or node.output[0] in seen:
            return
        seen.add(node.output[0])
        for name in node.input:
            self._collect(name, stop, nodes, seen)
        nodes.append(node)
