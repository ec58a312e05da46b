"""What a U-Net computes before it first looks at the prompt, cut from its graph `full`: both share the model's weight file.

A prompt and its negative prompt are asked about the same noisy sample at the same time, so `stem` has to run only once for both: of
SD 1.5 the first residual block and the first self-attention, which is one of the dearest. `full` goes on with what it gives.

| graph | takes | gives |
|---|---|---|
| `stem` | `sample`, `timestep` | `stem_0`, `stem_1`, … |
| `full` | these, and everything else that the model takes | what it gave before |

Nothing is rounded otherwise than in one graph: it is the same operators on the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from ..models.manifest import Component, Graph, Target, Tensor
from . import parity, reuse, rows, write
from .calibrate import open_graph
from .graph import attribute, between, factors, integers

STEM, FULL = "stem", "full"
UNPROMPTED = frozenset({"sample", "timestep", reuse.STRIDE})
"""Inputs that are the same for a prompt and its negative."""
LEAST = 3
"""Convolutions that a stem has at least. SDXL's has two, since its prompt is in the time embedding: half a percent of a call."""
PROBES = ({"height": 16, "width": 24}, {"height": 32, "width": 40})
"""Two sizes of latents: what is the same for both is no height or width."""


def pays(target: Target) -> bool:
    """Whether calls for `target` are made one prompt after the other by ONNX Runtime's own kernels. On GPUs a prompt and its negative are
    one batch, and what lies between two graphs would have to come and go; OpenVINO is as fast with one graph as with two.
    """
    return target in {"cpu", "portable"}


def add(folder: Path, component: Component) -> tuple[Component, str]:
    """Writes `stem.onnx`, and `full.onnx` anew, beside the graph of `component` in `folder`, if it pays.

    Gives the component that knows them, and otherwise the same one and why not. Nothing is kept that does not agree with the model.
    """
    whole = component.graphs.get(FULL)
    if whole is None:
        return component, ""
    model = reuse.load(folder / f"{FULL}.onnx")
    carried, asked = needed(model)
    if convolutions(carried) < LEAST or any(value.is_graph_input() for value in carried):
        return component, ""
    for number, value in enumerate(carried):
        value.name = f"{STEM}_{number}"
    paths = {name: folder / f"{name}.part.onnx" for name in (STEM, FULL)}
    try:
        ports = _split(model, whole, carried, asked, component, paths)
        if ports is None:
            return component, "the U-Net computes in half precision, or hides a shape: no part is shared by prompts"
        found = _agreement(folder / write.GRAPH, paths, component)
        if found < reuse.BAR:
            return component, f"the U-Net in two graphs gives {found:.1f} dB, expected {reuse.BAR:.0f}: no part is shared by prompts"
        for name, path in paths.items():
            path.replace(folder / f"{name}.onnx")
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    graphs = {
        name: Graph(f"{folder.name}/{name}.onnx", *ports[name], whole.grid if reuse.STRIDE in ports[name][0] else None) for name in paths
    }
    return msgspec.structs.replace(component, graphs={**component.graphs, **graphs}), ""


def needed(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """What is computed from the sample before anything looks at the prompt, and is needed behind: (for its numbers, for its shape alone).

    Asking for a shape costs nothing, so whoever needs it asks for itself.
    """
    prompted = {id(value) for value in model.graph.inputs if value.name not in UNPROMPTED}
    early = {id(value) for value in model.graph.inputs if value.name == "sample"}
    for node in model.graph:
        given = {id(value) for value in node.inputs if value is not None}
        if given & prompted:
            prompted |= {id(value) for value in node.outputs}
        elif given & early and node.op_type != "Shape":
            early |= {id(value) for value in node.outputs}
    carried: dict[int, ir.Value] = {}
    asked: dict[int, ir.Value] = {}
    waiting, seen = [node for value in model.graph.outputs if (node := value.producer()) is not None], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for value in node.inputs:
            if value is not None and id(value) in early:
                (asked if node.op_type == "Shape" else carried)[id(value)] = value
            elif value is not None and (made := value.producer()) is not None:
                waiting.append(made)
    return list(carried.values()), [value for key, value in asked.items() if key not in carried]


def convolutions(values: Sequence[ir.Value]) -> int:
    """How many convolutions `values` are computed with."""
    nodes = {id(node): node for value in values for one in reuse.ancestors(value) if (node := one.producer()) is not None}
    return sum(node.op_type in rows.CONVOLUTIONS for node in nodes.values())


_Ports = dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]
_Shapes = tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]
"""By name, for both of `PROBES`."""


def _split(
    model: ir.Model, whole: Graph, carried: Sequence[ir.Value], asked: Sequence[ir.Value], component: Component, paths: Mapping[str, Path]
) -> _Ports | None:
    """Writes both graphs to `paths`; gives their inputs and outputs, or None where the second would have to be told of shapes."""
    early = {name: tensor for name, tensor in whole.inputs.items() if name in UNPROMPTED}
    computed = [value.name or "" for value in (*carried, *asked) if not value.is_graph_input()]
    _write(model, early, dict.fromkeys(computed), paths[STEM])  # of types and shapes that are to be found out
    shapes = _probed(paths[STEM], component)
    if shapes is None:
        return None
    given = {value.name or "": _declared(value.name or "", shapes) for value in carried}
    inputs = _write(model, early, given, paths[STEM])
    if not _ask_others(model, carried, asked, shapes):
        return None
    late = {name: tensor for name, tensor in whole.inputs.items() if name != "sample"}
    return {STEM: (inputs, given), FULL: (_write(model, given | late, whole.outputs, paths[FULL]), whole.outputs)}


def _write(model: ir.Model, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None], path: Path) -> dict[str, Tensor]:
    """Writes what of `model` lies between `inputs` and `outputs` to `path`; gives the inputs that it uses."""
    graph = between(model, inputs, outputs)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)  # OpenVINO would take one input for another
    ports = {**inputs, **outputs}
    for value in (*graph.inputs, *graph.outputs):
        declared = ports[value.name or ""]
        if declared is not None:
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(declared.dtype))), ir.Shape(declared.shape)
    for value in factors(model.graph.initializers, list(graph.initializers)):
        graph.initializers.add(ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value))
    graph.sort()
    write.save_beside(ir.Model(graph, ir_version=model.ir_version), path)
    return {name: inputs[name] for value in graph.inputs if (name := value.name or "")}


def _probed(stem: Path, component: Component) -> _Shapes | None:
    """The shapes of what is put into `stem` and comes out of it; None where it computes in half precision, which is for GPUs."""
    session = open_graph(stem, lean=True)
    try:
        if any(tensor.dtype != "float32" for tensor in session.outputs.values()):
            return None
        probes = [reuse.feeds(component, **sizes) for sizes in PROBES]
        found = [{**feeds, **session.run({name: feeds[name] for name in session.inputs})} for feeds in probes]
    finally:
        session.close()
    one, other = ({name: array.shape for name, array in arrays.items()} for arrays in found)
    return one, other


def _declared(name: str, shapes: _Shapes) -> Tensor:
    """What is carried as `name`: of any batch, and free where its size is the latents'."""
    _, *sizes = zip(shapes[0][name], shapes[1][name], strict=True)
    return Tensor("float32", ("batch_size", *(one if one == other else f"{name}_{axis}" for axis, (one, other) in enumerate(sizes, 1))))


def _ask_others(model: ir.Model, carried: Sequence[ir.Value], asked: Sequence[ir.Value], shapes: _Shapes) -> bool:
    """Has what is carried be asked for the shapes of `asked`, which then need not be; False where none of it can tell.

    Shapes could be carried as numbers, but a provider that fixes all shapes would know none behind them.
    """
    for value in asked:
        for node in [use.node for use in value.uses() if use.node.op_type == "Shape"]:
            places = range(len(shapes[0][value.name or ""]))[attribute(node, "start", 0) : attribute(node, "end")]
            for other in carried:
                axes = [_axis(value.name or "", place, other.name or "", shapes) for place in places]
                known = [axis for axis in axes if axis is not None]
                if len(known) == len(axes):
                    break
            else:
                return False
            shape = ir.node("Shape", [other])
            taken = ir.node("Gather", [shape.outputs[0], integers(model, *known)])
            model.graph.insert_before(node, [shape, taken])
            node.outputs[0].replace_all_uses_with(taken.outputs[0])
    return True


def _axis(name: str, place: int, other: str, shapes: _Shapes) -> int | None:
    """The dimension of `other` that is dimension `place` of `name`, whatever the size of the latents."""
    sizes = [*zip(shapes[0][other], shapes[1][other], strict=True)]
    wanted = (shapes[0][name][place], shapes[1][name][place])
    if sizes[place : place + 1] == [wanted]:
        return place
    return sizes.index(wanted) if wanted in sizes else None


def _agreement(source: Path, paths: Mapping[str, Path], component: Component) -> float:
    """The worst SNR of the outputs in dB, of both graphs together against the model."""
    feeds = reuse.feeds(component)
    expected = reuse.run(source, feeds)
    found = reuse.run(paths[FULL], {**feeds, **reuse.run(paths[STEM], feeds)})
    return min(parity.snr(value, found[name]) for name, value in expected.items())
