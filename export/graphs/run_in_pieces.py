"""Run a graph piece by piece, with the weights of only one piece in memory.

Intermediate tensors can be returned (`watched`), and a difference can be added to any of them (`nudged`). The weights are not
copied: pieces read them from the graph's data file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from . import save

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Values = dict[str, Array]
_NONE: Feeds = MappingProxyType({})
PIECE = 128_000_000
"""Maximum bytes of weights in a piece; a larger layer is a piece of its own."""
DELTA = "_delta"
"""Suffix of the graph input that is added to a nudged tensor."""
_PIECE_FILES = "piece-*.onnx"


class Pieces:
    """The graph in `folder`, as `save.save` wrote it, or the one in `file` beside it, in pieces of at most `limit` bytes of weights.

    `open_graph(path, lean=…)` opens a file as a session; `lean` saves memory. A single piece stays open until `close`; of several,
    one is open at a time.
    """

    def __init__(
        self,
        folder: Path,
        open_graph: Callable[..., Any],
        watched: Collection[str] = (),
        nudged: Collection[str] = (),
        limit: int = PIECE,
        file: str = save.GRAPH,
    ) -> None:
        self._folder, self._open_graph = folder, open_graph
        model = cast("Any", onnx).load(str(folder / file), load_external_data=False)
        self._model = model
        graph = model.graph
        self._weights: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self._types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.outputs = [value.name for value in graph.output]
        self._watched = set(watched)
        self._nudged = set(nudged)
        self._nodes: list[list[Any]] = list(_cut(graph.node, self._weights, limit))
        self.piece_of = {name: number for number, nodes in enumerate(self._nodes) for node in nodes for name in node.output}
        """The number of the piece that computes each tensor, by name."""
        self._used = [{name for node in nodes for name in node.input} for nodes in self._nodes]
        self._session: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def run(self, feeds: Feeds) -> Values:
        """Return outputs and watched tensors, by name."""
        state, watched = dict(feeds), dict[str, Array]()
        for number in range(len(self)):
            state, seen = self.step(number, state)
            watched |= seen
        return watched | {name: state[name] for name in self.outputs}

    def run_all(self, feeds: Sequence[Feeds]) -> list[Values]:
        """Return the outputs for each of `feeds`. Opens every piece once and keeps the tensors between pieces of all runs in memory."""
        states: list[Values] = [dict(feed) for feed in feeds]
        for number in range(len(self)):
            states = [self.step(number, state)[0] for state in states]
        return [{name: state[name] for name in self.outputs} for state in states]

    def step(self, number: int, state: Feeds, deltas: Mapping[str, Array] = _NONE) -> tuple[Values, Values]:
        """Run piece `number` on `state`; return the next state and the watched tensors of this piece.

        A state holds the tensors that later pieces read, and the outputs so far. `deltas` are added to nudged tensors, by name.
        """
        session = self._open(number, state)
        zero = np.zeros(1, np.float32)
        feeds = {name: state[name] if name in state else deltas.get(name.removesuffix(DELTA), zero) for name in session.inputs}
        results: dict[str, Array] = session.run(feeds)
        later = self._later(number)
        carried = {name: array for name, array in {**state, **results}.items() if name in later}
        return carried, {name: array for name, array in results.items() if name in self._watched}

    def close(self) -> None:
        """Close the open piece and free its memory."""
        if self._session is not None:
            self._session[1].close()
            self._session = None

    def _later(self, number: int) -> set[str]:
        """Return the names of the tensors that are needed after piece `number`."""
        return {*self.outputs}.union(*self._used[number + 1 :])

    def _open(self, number: int, state: Feeds) -> Any:
        if self._session is not None and self._session[0] == number:
            return self._session[1]
        self.close()
        path = self._folder / _PIECE_FILES.replace("*", str(number))
        try:
            path.write_bytes(self._piece(number, state).SerializeToString())
            session = self._open_graph(path, lean=len(self) > 1)
        finally:
            path.unlink(missing_ok=True)
        self._types |= {name: _ONNX_TYPES[tensor.dtype] for name, tensor in session.outputs.items()}
        self._session = number, session
        return session

    def _piece(self, number: int, state: Feeds) -> Any:
        """Return piece `number` as a model."""
        nodes = [changed for node in self._nodes[number] for changed in self._nudge(node)]
        computed = {name for node in nodes for name in node.output}
        used = {name for node in nodes for name in node.input if name and name not in computed}
        weights = [tensor for name, tensor in self._weights.items() if name in used]
        inputs = [
            helper.make_tensor_value_info(name, self._types.get(name, TensorProto.FLOAT), self._shape(name, state))
            for name in sorted(used - self._weights.keys())
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in sorted(computed & (self._later(number) | self._watched))]
        graph = helper.make_graph(nodes, "piece", inputs, outputs, weights)
        model: Any = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        model.functions.extend(self._model.functions)
        return model

    def _shape(self, name: str, state: Feeds) -> list[str | int] | None:
        """Return symbolic dimensions; a tensor that holds a shape keeps its length, which is a rank."""
        if name not in state:
            return None
        array = state[name]
        is_shape = array.dtype == np.int64 and array.ndim == 1 and array.size <= 8
        return [array.size] if is_shape else [f"{name}_{axis}" for axis in range(array.ndim)]

    def _nudge(self, node: Any) -> Iterator[Any]:
        """Yield `node`, and an Add of the delta after it for each nudged output."""
        nudged = [name for name in node.output if name in self._nudged]
        if not nudged:
            yield node
            return
        copy: Any = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [f"{name}_before" if name in nudged else name for name in node.output]
        yield copy
        for name in nudged:
            yield helper.make_node("Add", [f"{name}_before", f"{name}{DELTA}"], [name])


def sweep(folder: Path) -> None:
    """Remove the files that an interrupted run left in `folder` or below."""
    for path in folder.rglob(_PIECE_FILES):
        path.unlink()


def _cut(nodes: Sequence[Any], weights: Mapping[str, Any], limit: int) -> Iterator[list[Any]]:
    """Split `nodes`, in order, into lists that read at most `limit` bytes of `weights` each, or a single node."""
    piece: list[Any] = []
    read: set[str] = set()
    size = 0
    for node in nodes:
        new = {name for name in node.input if name in weights} - read
        more = sum(_bytes(weights[name]) for name in new)
        if piece and size + more > limit:
            yield piece
            piece, read, size = [], set[str](), 0
        piece.append(node)
        read |= new
        size += more
    if piece:
        yield piece


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * cast("Any", helper).tensor_dtype_to_np_dtype(tensor.data_type).itemsize


_ONNX_TYPES = {
    name: cast("int", helper.np_dtype_to_tensor_dtype(np.dtype(name)))
    for name in ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool")
}
