"""A graph run piece by piece, so that never more than one piece's weights are in memory.

Two things come with it: any tensor inside can be looked at (`watched`), and something can be added to the output of any
layer (`nudged`), without writing the weights again: pieces read them from the graph's own data file.
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

from . import write

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Values = dict[str, Array]
_NONE: Feeds = MappingProxyType({})
PIECE = 128_000_000
"""Bytes of weights in a piece, but for a layer that is larger by itself."""
DELTA = "_delta"
"""What the input is called that is added to a nudged tensor, after the tensor's name."""
_STRAY = "piece-*.onnx"


class Pieces:
    """The graph that `write.save` wrote into `folder`, or one in `file` beside it, cut where it comes to `limit` bytes of weights.

    `open_graph(path, lean=…)` opens a file as a session, with little memory where `lean`. A graph of one piece stays open until
    `close`; of several, one is open at a time.
    """

    def __init__(
        self,
        folder: Path,
        open_graph: Callable[..., Any],
        watched: Collection[str] = (),
        nudged: Collection[str] = (),
        limit: int = PIECE,
        file: str = write.GRAPH,
    ) -> None:
        self._folder, self._open_graph = folder, open_graph
        model = cast("Any", onnx).load(str(folder / file), load_external_data=False)
        self._model = model
        graph = model.graph
        self._weights: dict[str, Any] = {one.name: one for one in graph.initializer}
        self._types: dict[str, int] = {one.name: one.type.tensor_type.elem_type for one in graph.input}
        self.outputs = [one.name for one in graph.output]
        self._watched = set(watched)
        self._nudged = set(nudged)
        self._nodes: list[list[Any]] = list(_cut(graph.node, self._weights, limit))
        self.places = {name: place for place, nodes in enumerate(self._nodes) for node in nodes for name in node.output}
        """The number of the piece that makes each tensor."""
        self._used = [{name for node in nodes for name in node.input} for nodes in self._nodes]
        self._session: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def run(self, feeds: Feeds) -> Values:
        """Outputs and watched tensors by name."""
        state, found = dict(feeds), dict[str, Array]()
        for place in range(len(self)):
            state, seen = self.step(place, state)
            found |= seen
        return found | {name: state[name] for name in self.outputs}

    def run_all(self, feeds: Sequence[Feeds]) -> list[Values]:
        """The outputs for each of `feeds`, every piece opened once; what passes from piece to piece stays in memory meanwhile."""
        states: list[Values] = [dict(feed) for feed in feeds]
        for place in range(len(self)):
            states = [self.step(place, state)[0] for state in states]
        return [{name: state[name] for name in self.outputs} for state in states]

    def step(self, place: int, state: Feeds, deltas: Mapping[str, Array] = _NONE) -> tuple[Values, Values]:
        """What is known after piece number `place` of what later ones read and of outputs; and what is watched in this piece.

        `state` is what was known before; `deltas` are added to nudged tensors by name.
        """
        session = self._opened(place, state)
        nothing = np.zeros(1, np.float32)
        given = {name: state[name] if name in state else deltas.get(name.removesuffix(DELTA), nothing) for name in session.inputs}
        made: dict[str, Array] = session.run(given)
        later = self._later(place)
        carried = {name: array for name, array in {**state, **made}.items() if name in later}
        return carried, {name: array for name, array in made.items() if name in self._watched}

    def close(self) -> None:
        """Gives the memory back."""
        if self._session is not None:
            self._session[1].close()
            self._session = None

    def _later(self, place: int) -> set[str]:
        """Tensors that are needed after piece number `place`."""
        return {*self.outputs}.union(*self._used[place + 1 :])

    def _opened(self, place: int, state: Feeds) -> Any:
        if self._session is not None and self._session[0] == place:
            return self._session[1]
        self.close()
        path = self._folder / _STRAY.replace("*", str(place))
        try:
            path.write_bytes(self._piece(place, state).SerializeToString())
            session = self._open_graph(path, lean=len(self) > 1)
        finally:
            path.unlink(missing_ok=True)
        self._types |= {name: _NUMBERS[tensor.dtype] for name, tensor in session.outputs.items()}
        self._session = place, session
        return session

    def _piece(self, place: int, state: Feeds) -> Any:
        nodes = [node for one in self._nodes[place] for node in self._node(one)]
        made = {name for node in nodes for name in node.output}
        used = {name for node in nodes for name in node.input if name and name not in made}
        weights = [tensor for name, tensor in self._weights.items() if name in used]
        inputs = [
            helper.make_tensor_value_info(name, self._types.get(name, TensorProto.FLOAT), self._shape(name, state))
            for name in sorted(used - self._weights.keys())
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in sorted(made & (self._later(place) | self._watched))]
        graph = helper.make_graph(nodes, "piece", inputs, outputs, weights)
        made: Any = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        made.functions.extend(self._model.functions)
        return made

    def _shape(self, name: str, state: Feeds) -> list[str | int] | None:
        """Free dimensions, but for a shape that is handed on as a tensor: its length is a rank."""
        if name not in state:
            return None
        array = state[name]
        is_shape = array.dtype == np.int64 and array.ndim == 1 and array.size <= 8
        return [array.size] if is_shape else [f"{name}_{axis}" for axis in range(array.ndim)]

    def _node(self, node: Any) -> Iterator[Any]:
        """`node`, and after it what adds to its output if that is nudged."""
        touched = [name for name in node.output if name in self._nudged]
        if not touched:
            yield node
            return
        copy: Any = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [f"{name}_plain" if name in touched else name for name in node.output]
        yield copy
        for name in touched:
            yield helper.make_node("Add", [f"{name}_plain", f"{name}{DELTA}"], [name])


def sweep(folder: Path) -> None:
    """Removes what a killed run left in `folder` or below."""
    for path in folder.rglob(_STRAY):
        path.unlink()


def _cut(nodes: Sequence[Any], weights: Mapping[str, Any], limit: int) -> Iterator[list[Any]]:
    """`nodes` in order, in lists that read at most `limit` bytes of `weights` each, or one node."""
    piece: list[Any] = []
    known: set[str] = set()
    size = 0
    for node in nodes:
        new = {name for name in node.input if name in weights} - known
        more = sum(_bytes(weights[name]) for name in new)
        if piece and size + more > limit:
            yield piece
            piece, known, size = [], set[str](), 0
        piece.append(node)
        known |= new
        size += more
    if piece:
        yield piece


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * cast("Any", helper).tensor_dtype_to_np_dtype(tensor.data_type).itemsize


_NUMBERS = {
    name: cast("int", helper.np_dtype_to_tensor_dtype(np.dtype(name)))
    for name in ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool")
}
