"""Graphs that do less work per picture, cut from a component's final graph: both share its weight file.

| graph | beside the inputs and outputs of the model |
|---|---|
| `full` | gives `deep_features`: what comes up from below the cut |
| `shallow` | takes `deep_features`, and computes only what lies above the cut |

`deep_features` change slowly from one step to the next (DeepCache, Ma et al. 2023, arXiv:2312.00858). Both graphs also take
`token_stride` (height, width): with (2, 2) the self-attentions of the highest resolution see keys and values of every second
pixel along each side (ToDo, Smith et al. 2024, arXiv:2402.13573); with (1, 1) of all, and nothing changes.

The passes work on the graph as it is published, in any precision: what was calibrated stays as it was.
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

from ..models import onnx_file
from ..models.manifest import Component, Graph, Tensor
from . import parity, write
from .calibrate import open_graph
from .graph import attribute, constant, declined, initializer, integers, nodes_of, producer, tidy
from .pieces import Pieces

DEEP, STRIDE = "deep_features", "token_stride"
DEPTH = 1
"""Blocks of the way up that are above the cut, counted from the output. With one, a shallow call of an SD 1.5 U-Net takes 6 % of a
whole one's time; with two 15 %, with three 27 %, and what is gained in fidelity more full calls give for less."""
BAR = 40.0
"""dB that the graphs have to agree with the model's own; they are equal but for the order in which ORT computes some sums."""


def add(folder: Path, component: Component) -> tuple[Component, str]:
    """Writes `full.onnx` and `shallow.onnx` beside the graph of `component` in `folder`, if it can be cut.

    Gives the component that knows them, and otherwise the same one and why not. Nothing is kept that does not agree with the
    model: `full` and, given its deep features, `shallow` have to give what the model gives.
    """
    source = folder / write.GRAPH
    made: dict[str, Callable[[ir.Model], ir.Model]] = {"full": full, "shallow": shallow}
    names = {name: folder / f"{name}.onnx" for name in made}
    grid, deep = None, list[str]()
    for name, cut in made.items():
        model = load(source)
        join = cut_at(model)
        if join is None:
            return component, "no place to cut the graph was found: pictures cannot be drawn with less work"
        grid, deep = stride_tokens(model), _deep_shape(join)
        write.save_beside(cut(model), names[name])
    found, ports = _agreement(source, names, component, deep, strided=grid is not None)
    if found < BAR:
        for path in names.values():
            path.unlink()
        return component, f"the graphs for less work give {found:.1f} dB, expected {BAR:.0f}: they are left out"
    for path in names.values():
        _say_shapes(path, ports["full"][1][DEEP])
    graphs = {name: Graph(f"{folder.name}/{path.name}", *ports[name], grid) for name, path in names.items()}
    return msgspec.structs.replace(component, graphs=graphs), ""


def _say_shapes(path: Path, between: Tensor) -> None:
    """Declares what lies between the graphs in the file as the manifest does: providers that need fixed shapes ask the file."""
    model = load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name == DEEP:
            value.shape = ir.Shape(between.shape)
    write.save_beside(model, path)


_Ports = dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]


def _agreement(source: Path, paths: dict[str, Path], component: Component, deep: list[str], *, strided: bool) -> tuple[float, _Ports]:
    """The worst SNR of the outputs in dB, and the inputs and outputs of each graph; `deep` are the dimensions of what lies between."""
    given = feeds(component)
    expected = run(source, given)
    outputs = run(paths["full"], given)
    taken = onnx_file.read(paths["shallow"]).inputs.keys()
    again = run(paths["shallow"], given | {DEEP: outputs[DEEP]})
    worst = min(parity.snr(value, other[name]) for name, value in expected.items() for other in (outputs, again))
    inputs = component.inputs | ({STRIDE: Tensor("int64", (2,))} if strided else {})
    sizes = dict(zip(deep, outputs[DEEP].shape, strict=True))
    between = Tensor("float32", tuple(sizes[name] if name == "deep_channels" else name for name in deep))
    above = {name: tensor for name, tensor in (inputs | {DEEP: between}).items() if name in taken}
    return worst, {"full": (inputs, component.outputs | {DEEP: between}), "shallow": (above, component.outputs)}


def feeds(component: Component, height: int = 16, width: int = 24) -> dict[str, NDArray[Any]]:
    """Something for each input of `component`, a U-Net, and for a stride that takes all: noise, in latents of that size."""
    rng, sizes = np.random.default_rng(0), {"height": height, "width": width, "sequence_length": 8}
    made: dict[str, NDArray[Any]] = {STRIDE: np.ones(2, np.int64)}
    for name, tensor in component.inputs.items():
        shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape]
        made[name] = np.asarray(np.full(shape, 500) if name == "timestep" else rng.standard_normal(shape), tensor.dtype)
    return made


def run(graph: Path, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What `graph` makes of those of `given` that it takes.

    It is opened the same way whatever its size: weights that are packed go to other kernels, which round otherwise.
    """
    taken = onnx_file.read(graph).inputs.keys()
    pieces = Pieces(graph.parent, _open_lean, file=graph.name)
    try:
        return pieces.run({name: value for name, value in given.items() if name in taken})
    finally:
        pieces.close()


def _open_lean(path: Path, *, lean: bool = True) -> Any:
    del lean  # always: see above
    return open_graph(path, lean=True)


def _deep_shape(join: ir.Node) -> list[str]:
    """The dimensions of what comes from below, all free; channels are first or last, as the graph has them."""
    sides = ["deep_height", "deep_width"]
    return ["batch_size", *(["deep_channels", *sides] if attribute(join, "axis") == 1 else [*sides, "deep_channels"])]


def load(graph: Path) -> ir.Model:
    """The model in the file `graph`; its large tensors stay where they are, and a copy of the graph can point there too."""
    model: ir.Model = cast("Any", ir).load(graph)
    return model


def cut_at(model: ir.Model, depth: int = DEPTH) -> ir.Node | None:
    """The `Concat` that joins what comes from below with what was kept on the way down, `depth` blocks before the end; None if
    the model has no such joins.
    """
    joins = [node for node in nodes_of(model, "Concat") if attribute(node, "axis") in {1, 3} and len(node.inputs) == 2]
    joins = [node for node in joins if not any(value is None or value.is_initializer() for value in node.inputs)]
    return joins[-depth] if len(joins) >= depth else None


def full(model: ir.Model, depth: int = DEPTH) -> ir.Model:
    """`model`, with `deep_features` as one more output."""
    join = cut_at(model, depth)
    assert join is not None
    cast_up = ir.node("Cast", [join.inputs[0]], {"to": ir.DataType.FLOAT.value}, name=DEEP)  # for graphs in half precision
    model.graph.insert_before(join, cast_up)
    given = cast_up.outputs[0]
    given.name, given.type, given.shape = DEEP, ir.TensorType(ir.DataType.FLOAT), ir.Shape(_deep_shape(join))
    model.graph.outputs.append(given)
    return model


def shallow(model: ir.Model, depth: int = DEPTH) -> ir.Model:
    """`model` above the cut: what comes from below is one more input, `deep_features`."""
    join = cut_at(model, depth)
    assert join is not None
    localize_shapes(model)
    given = ir.val(DEEP, ir.DataType.FLOAT, _deep_shape(join))
    cast_down = ir.node("CastLike", [given, join.inputs[1]])
    model.graph.insert_before(join, cast_down)
    join.replace_input_with(0, cast_down.outputs[0])
    model.graph.inputs.append(given)
    tidy(model)
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)  # OpenVINO would take one input for another
    return model


def localize_shapes(model: ir.Model) -> ir.Model:
    """Tokens become pixels again by the shape that they had when they became tokens, not by that of an equal tensor elsewhere.

    So a part of the graph can stand without the others.
    """
    for node in nodes_of(model, "Reshape"):
        asked = producer(node.inputs[1], "Shape")
        if (
            asked is None
            or asked.inputs[0] is None
            or asked.inputs[0].is_graph_input()
            or attribute(asked, "start")
            or attribute(asked, "end")
        ):
            continue
        entry = _entry(node.inputs[0], asked.inputs[0])
        if entry is not None and entry is not asked.inputs[0]:
            node.replace_input_with(1, _shape_of(model, entry))
    return model


def _entry(value: ir.Value | None, until: ir.Value | None = None) -> ir.Value | None:
    """The pixels (batch, height, width, channels) that became the tokens which `value` was computed from; None if `until` is met before."""
    for one in ancestors(value):
        if one is until:
            return None
        reshape = producer(one, "Reshape")
        numbers = None if reshape is None else constant(reshape.inputs[1])
        if reshape is not None and numbers is not None and numbers.size == 3 and tuple(numbers[:2]) == (0, -1):
            return reshape.inputs[0]
    return None


def ancestors(value: ir.Value | None) -> Iterator[ir.Value]:
    """`value` and what it was computed from, the nearest first."""
    waiting, seen = deque([value]), set[int]()
    while waiting:
        one = waiting.popleft()
        if one is None or id(one) in seen or one.is_initializer():
            continue
        seen.add(id(one))
        yield one
        node = one.producer()
        if node is not None:
            waiting.extend(node.inputs)


def _shape_of(model: ir.Model, value: ir.Value) -> ir.Value:
    """Its shape, asked for where it is made: before whatever needs it."""
    node = ir.node("Shape", [value])
    made = value.producer()
    assert made is not None
    model.graph.insert_after(made, node)
    return node.outputs[0]


def stride_tokens(model: ir.Model) -> int | None:
    """Adds the input `token_stride`: keys and values of the self-attentions of the highest resolution are projected from that
    grid of the pixels alone.

    Gives the latent pixels along one side of one of their tokens; None without such attentions, and the model stays as it is.
    """
    level, layers = _highest(model)
    entries = {name: _entry(node.inputs[0]) for name, node in layers.items()}
    if not layers or None in entries.values():
        declined(model).append("self-attentions with projections of their own, and pixels before them, were not found: keys stay whole")
        return None
    localize_shapes(model)
    stride = ir.val(STRIDE, ir.DataType.INT64, [2])
    model.graph.inputs.append(stride)
    thinned: dict[int, ir.Value] = {}
    for name, node in layers.items():
        tokens, entry = node.inputs[0], entries[name]
        assert tokens is not None
        assert entry is not None
        if id(tokens) not in thinned:
            thinned[id(tokens)] = _thin(model, tokens, entry, stride, node)
        node.replace_input_with(0, thinned[id(tokens)])
    return 2**level


def _thin(model: ir.Model, tokens: ir.Value, entry: ir.Value, stride: ir.Value, before: ir.Node) -> ir.Value:
    """Every `stride`-th of `tokens` (batch, height × width, channels) along height and width."""
    pixels = ir.node("Reshape", [tokens, _shape_of(model, entry)])
    ends, axes = initializer(model, "all_ends", np.full(2, np.iinfo(np.int64).max, np.int64)), integers(model, 1, 2)
    kept = ir.node("Slice", [pixels.outputs[0], integers(model, 0, 0), ends, axes, stride])
    shape = ir.node("Shape", [tokens], {"start": 2})
    joined = ir.node("Concat", [integers(model, 0, -1), shape.outputs[0]], {"axis": 0})
    again = ir.node("Reshape", [kept.outputs[0], joined.outputs[0]])
    model.graph.insert_before(before, [pixels, kept, shape, joined, again])
    return again.outputs[0]


def _highest(model: ir.Model) -> tuple[int, dict[str, ir.Node]]:
    """How often the highest resolution with self-attentions was halved, and their projections to keys and values, by name."""
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
    places = (f"down_blocks.{min(downs)}.", f"up_blocks.{max(ups)}.")
    return min(downs), {name: node for name, node in found.items() if name.startswith(places)}


def _product(weight: ir.Value) -> ir.Node | None:
    """The matrix product that `weight` goes into, by way of what makes it float."""
    users = [use.node for use in weight.uses()]
    if len(users) == 1 and users[0].op_type in {"Cast", "DequantizeLinear"}:
        users = [use.node for use in users[0].outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type in {"MatMul", "MatMulIntegerToFloat"} else None
