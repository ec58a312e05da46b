"""Graphs for step caching: `full` and `shallow`, derived from a U-Net's final graph; both share its weight file.

| graph | difference from the model |
|---|---|
| `full` | output `deep_features`: the result of the blocks below the cut |
| `shallow` | input `deep_features`; computes only the blocks above the cut |

`deep_features` change slowly from one step to the next (DeepCache, Ma et al. 2023, arXiv:2312.00858). Both graphs also have the input
`token_stride` (height, width): with (2, 2), the self-attentions of the highest resolution use keys and values of every second pixel along
each side (ToDo, Smith et al. 2024, arXiv:2402.13573); with (1, 1), those of all pixels, as in the model.

The passes work on the published graph, in any precision, so they do not affect the calibration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...models.formats import onnx_reader
from ...models.manifest import Component, Graph, Tensor
from ..graphs import parity, save
from ..graphs.edit import attribute, constant, declined, initializer, integers, nodes_of, producer, tidy
from ..graphs.run_in_pieces import Pieces
from ..runtime_bridge import open_graph

DEEP, STRIDE = "deep_features", "token_stride"
DEPTH = 1
"""Number of residual blocks above the cut, counted from the output. With one, a shallow call of an SD 1.5 U-Net takes 6 % of the time of a
full call, with two 15 %, with three 27 %; more full calls improve fidelity for less time."""
BAR = 40.0
"""Minimum SNR in dB against the model's graph; only the order of some sums in ONNX Runtime differs."""


def add(folder: Path, component: Component) -> tuple[Component, str]:
    """Write `full.onnx` and `shallow.onnx` beside the graph of `component` in `folder`.

    Returns the component with both graphs. If the graph cannot be cut, or the outputs of `full` or `shallow` differ from the model's,
    returns the same component and the reason.
    """
    source = folder / save.GRAPH
    cuts: dict[str, Callable[[ir.Model], ir.Model]] = {"full": full, "shallow": shallow}
    paths = {name: folder / f"{name}.onnx" for name in cuts}
    grid, deep = None, list[str]()
    for name, cut in cuts.items():
        model = load(source)
        join = cut_at(model)
        if join is None:
            return component, "the U-Net has no skip connection to cut at: the bundle has no step caching"
        grid, deep = stride_tokens(model), _deep_shape(join)
        save.save_beside(cut(model), paths[name])
    db, ports = _agreement(source, paths, component, deep, strided=grid is not None)
    if db < BAR:
        for path in paths.values():
            path.unlink()
        return component, f"the graphs for step caching reach {db:.1f} dB, expected {BAR:.0f}: the bundle has no step caching"
    for path in paths.values():
        _declare_shape(path, ports["full"][1][DEEP])
    graphs = {name: Graph(f"{folder.name}/{path.name}", *ports[name], grid) for name, path in paths.items()}
    return msgspec.structs.replace(component, graphs=graphs), ""


def _declare_shape(path: Path, deep_features: Tensor) -> None:
    """Write the shape of `deep_features` from the manifest into the file, where providers that need fixed shapes read it."""
    model = load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name == DEEP:
            value.shape = ir.Shape(deep_features.shape)
    save.save_beside(model, path)


_Ports = dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]


def _agreement(source: Path, paths: dict[str, Path], component: Component, deep: list[str], *, strided: bool) -> tuple[float, _Ports]:
    """Return the lowest SNR in dB of the outputs, and the inputs and outputs of each graph.

    `deep` names the dimensions of `deep_features`.
    """
    noise = feeds(component)
    expected = run(source, noise)
    from_full = run(paths["full"], noise)
    from_shallow = run(paths["shallow"], noise | {DEEP: from_full[DEEP]})
    worst = min(parity.snr(value, outputs[name]) for name, value in expected.items() for outputs in (from_full, from_shallow))
    inputs = component.inputs | ({STRIDE: Tensor("int64", (2,))} if strided else {})
    sizes = dict(zip(deep, from_full[DEEP].shape, strict=True))
    features = Tensor("float32", tuple(sizes[name] if name == "deep_channels" else name for name in deep))
    used = onnx_reader.read(paths["shallow"]).inputs.keys()
    shallow_inputs = {name: tensor for name, tensor in (inputs | {DEEP: features}).items() if name in used}
    return worst, {"full": (inputs, component.outputs | {DEEP: features}), "shallow": (shallow_inputs, component.outputs)}


def feeds(component: Component, height: int = 16, width: int = 24) -> dict[str, NDArray[Any]]:
    """Return noise for each input of `component`, a U-Net, with latents of that size, and the stride (1, 1)."""
    rng, sizes = np.random.default_rng(0), {"height": height, "width": width, "sequence_length": 8}
    arrays: dict[str, NDArray[Any]] = {STRIDE: np.ones(2, np.int64)}
    for name, tensor in component.inputs.items():
        shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape]
        arrays[name] = np.asarray(np.full(shape, 500) if name == "timestep" else rng.standard_normal(shape), tensor.dtype)
    return arrays


def run(graph: Path, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of `graph` for those of `feeds` that are its inputs.

    Opens graphs of every size the same way: packed weights would select other kernels, which round differently.
    """
    inputs = onnx_reader.read(graph).inputs.keys()
    pieces = Pieces(graph.parent, _open_lean, file=graph.name)
    try:
        return pieces.run({name: value for name, value in feeds.items() if name in inputs})
    finally:
        pieces.close()


def _open_lean(path: Path, *, lean: bool = True) -> Any:
    del lean  # always lean: see `run`
    return open_graph(path, lean=True)


def _deep_shape(join: ir.Node) -> list[str]:
    """Return the symbolic dimensions of `deep_features`; channels are first or last, as in the graph."""
    sides = ["deep_height", "deep_width"]
    return ["batch_size", *(["deep_channels", *sides] if attribute(join, "axis") == 1 else [*sides, "deep_channels"])]


def load(graph: Path) -> ir.Model:
    """Open the model in the file `graph`. Its large tensors stay in the data file, which a graph saved beside it shares."""
    model: ir.Model = cast("Any", ir).load(graph)
    return model


def cut_at(model: ir.Model, depth: int = DEPTH) -> ir.Node | None:
    """Return the `Concat` of the `depth`-th skip connection, counted from the output; None if the model has fewer.

    Its first input comes from the deeper blocks.
    """
    joins = [node for node in nodes_of(model, "Concat") if attribute(node, "axis") in {1, 3} and len(node.inputs) == 2]
    joins = [node for node in joins if not any(value is None or value.is_initializer() for value in node.inputs)]
    return joins[-depth] if len(joins) >= depth else None


def full(model: ir.Model, depth: int = DEPTH) -> ir.Model:
    """Add the output `deep_features` to `model`."""
    join = cut_at(model, depth)
    assert join is not None
    cast_up = ir.node("Cast", [join.inputs[0]], {"to": ir.DataType.FLOAT.value}, name=DEEP)  # for graphs in half precision
    model.graph.insert_before(join, cast_up)
    features = cast_up.outputs[0]
    features.name, features.type, features.shape = DEEP, ir.TensorType(ir.DataType.FLOAT), ir.Shape(_deep_shape(join))
    model.graph.outputs.append(features)
    return model


def shallow(model: ir.Model, depth: int = DEPTH) -> ir.Model:
    """Reduce `model` to the blocks above the cut; the deeper blocks are replaced by the input `deep_features`."""
    join = cut_at(model, depth)
    assert join is not None
    localize_shapes(model)
    features = ir.val(DEEP, ir.DataType.FLOAT, _deep_shape(join))
    cast_down = ir.node("CastLike", [features, join.inputs[1]])
    model.graph.insert_before(join, cast_down)
    join.replace_input_with(0, cast_down.outputs[0])
    model.graph.inputs.append(features)
    tidy(model)
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)  # OpenVINO mixes up inputs if one is unused
    return model


def localize_shapes(model: ir.Model) -> ir.Model:
    """Reshape tokens to pixels with the shape of the pixels they come from, not of a tensor elsewhere that has the same shape.

    Then part of the graph does not depend on the rest for a shape.
    """
    for node in nodes_of(model, "Reshape"):
        shape = producer(node.inputs[1], "Shape")
        source = None if shape is None or attribute(shape, "start") or attribute(shape, "end") else shape.inputs[0]
        if source is None or source.is_graph_input():
            continue
        entry = _entry(node.inputs[0], source)
        if entry is not None and entry is not source:
            node.replace_input_with(1, _shape_of(model, entry))
    return model


def _entry(value: ir.Value | None, until: ir.Value | None = None) -> ir.Value | None:
    """Return the pixels (batch, height, width, channels) that were reshaped to the tokens `value` depends on.

    None: no tokens were found, or the tensor `until` is nearer.
    """
    for ancestor in ancestors(value):
        if ancestor is until:
            return None
        reshape = producer(ancestor, "Reshape")
        numbers = None if reshape is None else constant(reshape.inputs[1])
        if reshape is not None and numbers is not None and numbers.size == 3 and tuple(numbers[:2]) == (0, -1):
            return reshape.inputs[0]
    return None


def ancestors(value: ir.Value | None) -> Iterator[ir.Value]:
    """Yield `value` and the tensors that it depends on, the nearest first."""
    waiting, seen = deque([value]), set[int]()
    while waiting:
        current = waiting.popleft()
        if current is None or id(current) in seen or current.is_initializer():
            continue
        seen.add(id(current))
        yield current
        node = current.producer()
        if node is not None:
            waiting.extend(node.inputs)


def _shape_of(model: ir.Model, value: ir.Value) -> ir.Value:
    """Return the shape of `value`, read right after the node that computes it, so that every later node can use it."""
    node = ir.node("Shape", [value])
    source = value.producer()
    assert source is not None
    model.graph.insert_after(source, node)
    return node.outputs[0]


def stride_tokens(model: ir.Model) -> int | None:
    """Add the input `token_stride`: the self-attentions of the highest resolution compute keys and values from a grid of pixels.

    Returns the side of their tokens in latent pixels; None if there are no self-attentions, and the model then does not change.
    """
    level, layers = _highest_projections(model)
    entries = {name: _entry(node.inputs[0]) for name, node in layers.items()}
    if not layers or None in entries.values():
        declined(model).append("no self-attentions with separate projections and pixels before them: token_stride is left out")
        return None
    localize_shapes(model)
    stride = ir.val(STRIDE, ir.DataType.INT64, [2])
    model.graph.inputs.append(stride)
    strided: dict[int, ir.Value] = {}
    for name, node in layers.items():
        tokens, entry = node.inputs[0], entries[name]
        assert tokens is not None
        assert entry is not None
        if id(tokens) not in strided:
            strided[id(tokens)] = _every(model, tokens, entry, stride, node)
        node.replace_input_with(0, strided[id(tokens)])
    return 2**level


def _every(model: ir.Model, tokens: ir.Value, entry: ir.Value, stride: ir.Value, before: ir.Node) -> ir.Value:
    """Return every `stride`-th of `tokens` (batch, height × width, channels) along height and width."""
    pixels = ir.node("Reshape", [tokens, _shape_of(model, entry)])
    ends, axes = initializer(model, "all_ends", np.full(2, np.iinfo(np.int64).max, np.int64)), integers(model, 1, 2)
    kept = ir.node("Slice", [pixels.outputs[0], integers(model, 0, 0), ends, axes, stride])
    shape = ir.node("Shape", [tokens], {"start": 2})
    joined = ir.node("Concat", [integers(model, 0, -1), shape.outputs[0]], {"axis": 0})
    strided = ir.node("Reshape", [kept.outputs[0], joined.outputs[0]])
    model.graph.insert_before(before, [pixels, kept, shape, joined, strided])
    return strided.outputs[0]


def _highest_projections(model: ir.Model) -> tuple[int, dict[str, ir.Node]]:
    """Return how often the highest resolution with self-attentions was halved, and their key and value projections, by name."""
    found: dict[str, ir.Node] = {}
    for value in model.graph.initializers.values():
        layer = (value.name or "").removesuffix("_quantized").removesuffix(".weight")
        if layer.endswith((".attn1.to_k", ".attn1.to_v")):
            node = _product(value)
            if node is not None:
                found[layer] = node
    downs = {int(name.split(".")[1]) for name in found if name.startswith("down_blocks.")}
    ups = {int(name.split(".")[1]) for name in found if name.startswith("up_blocks.")}
    if not downs or not ups:
        return 0, {}
    blocks = (f"down_blocks.{min(downs)}.", f"up_blocks.{max(ups)}.")
    return min(downs), {name: node for name, node in found.items() if name.startswith(blocks)}


def _product(weight: ir.Value) -> ir.Node | None:
    """Return the matrix product that reads `weight`, also through a Cast or DequantizeLinear."""
    users = [use.node for use in weight.uses()]
    if len(users) == 1 and users[0].op_type in {"Cast", "DequantizeLinear"}:
        users = [use.node for use in users[0].outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type in {"MatMul", "MatMulIntegerToFloat"} else None
