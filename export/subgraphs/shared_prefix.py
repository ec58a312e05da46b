"""Split the shared prefix of a U-Net, the nodes before its first cross-attention, from the graph `full`; both share the weight file.

A prompt and its negative prompt run with the same noisy sample and timestep, so the prefix runs once for both. In SD 1.5, it is the first
residual block and the first self-attention, one of the most expensive. `full` computes the rest from the prefix's outputs.

| graph | inputs | outputs |
|---|---|---|
| `stem` (the prefix) | `sample`, `timestep` | `stem_0`, `stem_1`, … |
| `full` (the rest) | these, and the other inputs of the model | the outputs of the model |

The results are the same, bit for bit: the same operators on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from ...models.manifest import Component, Graph, Target, Tensor
from ..graphs import parity, save
from ..graphs.edit import attribute, between, factors, integers
from ..runtime_bridge import open_graph
from . import receptive_field, step_caching

PREFIX, FULL = "stem", "full"
"""Names of the two graphs in the manifest."""
SHARED_INPUTS = frozenset({"sample", "timestep", step_caching.STRIDE})
"""Inputs that are the same for a prompt and its negative prompt."""
MIN_CONVOLUTIONS = 3
"""Minimum number of convolutions in a prefix. SDXL's has two, because its prompt is in the time embedding: half a percent of a call."""
PROBES = ({"height": 16, "width": 24}, {"height": 32, "width": 40})
"""Two sizes of latents: a dimension that is equal for both is not a height or a width."""


def pays(target: Target) -> bool:
    """Whether a shared prefix makes `target` faster: on ONNX Runtime's CPU provider, prompts run one after the other.

    On GPUs, a prompt and its negative prompt are one batch, and tensors between the graphs would have to be copied. OpenVINO is as fast
    with one graph as with two.
    """
    return target in {"cpu", "portable"}


def add(folder: Path, component: Component) -> tuple[Component, str]:
    """Write `stem.onnx` and replace `full.onnx` beside the graph of `component` in `folder`, if the prefix is large enough.

    Returns the component with both graphs; if the graph cannot be split, or the graphs do not agree with the model, the same component
    and the reason.
    """
    full = component.graphs.get(FULL)
    if full is None:
        return component, ""
    model = step_caching.load(folder / f"{FULL}.onnx")
    carried, shaped = boundary(model)
    if convolutions(carried) < MIN_CONVOLUTIONS or any(value.is_graph_input() for value in carried):
        return component, ""
    for number, value in enumerate(carried):
        value.name = f"{PREFIX}_{number}"
    paths = {name: folder / f"{name}.part.onnx" for name in (PREFIX, FULL)}
    try:
        ports = _split(model, full, carried, shaped, component, paths)
        if ports is None:
            return component, "the U-Net has no shared prefix: it computes in half precision, or a shape cannot be read from its outputs"
        db = _agreement(folder / save.GRAPH, paths, component)
        if db < step_caching.BAR:
            return component, f"the U-Net has no shared prefix: split, it reaches {db:.1f} dB, expected {step_caching.BAR:.0f}"
        for name, path in paths.items():
            path.replace(folder / f"{name}.onnx")
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)
    graphs = {
        name: Graph(f"{folder.name}/{name}.onnx", *ports[name], full.grid if step_caching.STRIDE in ports[name][0] else None)
        for name in paths
    }
    return msgspec.structs.replace(component, graphs={**component.graphs, **graphs}), ""


def boundary(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return the tensors that the rest of the graph reads from the prefix, and those of which it only reads the shape.

    A shape is free to read, so the rest reads shapes itself.
    """
    prefix = _prefix(model)
    carried: dict[int, ir.Value] = {}
    shaped: dict[int, ir.Value] = {}
    for node in _nodes_after(model, prefix):
        for value in node.inputs:
            if value is not None and id(value) in prefix:
                (shaped if node.op_type == "Shape" else carried)[id(value)] = value
    return list(carried.values()), [value for key, value in shaped.items() if key not in carried]


def _prefix(model: ir.Model) -> set[int]:
    """Return the ids of the tensors that depend on the sample and not on the prompt; shapes are left out."""
    prompted = {id(value) for value in model.graph.inputs if value.name not in SHARED_INPUTS}
    prefix = {id(value) for value in model.graph.inputs if value.name == "sample"}
    for node in model.graph:
        inputs = {id(value) for value in node.inputs if value is not None}
        if inputs & prompted:
            prompted |= {id(value) for value in node.outputs}
        elif inputs & prefix and node.op_type != "Shape":
            prefix |= {id(value) for value in node.outputs}
    return prefix


def _nodes_after(model: ir.Model, prefix: set[int]) -> Iterator[ir.Node]:
    """Yield the nodes from the outputs of `model` back to the tensors of the prefix."""
    waiting, seen = [node for value in model.graph.outputs if (node := value.producer()) is not None], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        needed = [value for value in node.inputs if value is not None and id(value) not in prefix]
        waiting.extend(producer for value in needed if (producer := value.producer()) is not None)


def convolutions(values: Sequence[ir.Value]) -> int:
    """Return the number of convolutions that `values` are computed by."""
    nodes = {id(node): node for value in values for ancestor in step_caching.ancestors(value) if (node := ancestor.producer()) is not None}
    return sum(node.op_type in receptive_field.CONVOLUTIONS for node in nodes.values())


_Ports = dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]
_Shapes = tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]
"""Shapes by tensor name, for each of `PROBES`."""


def _split(
    model: ir.Model, full: Graph, carried: Sequence[ir.Value], shaped: Sequence[ir.Value], component: Component, paths: Mapping[str, Path]
) -> _Ports | None:
    """Write both graphs to `paths`; return their inputs and outputs, or None if the rest cannot read a shape from the prefix's outputs."""
    shared = {name: tensor for name, tensor in full.inputs.items() if name in SHARED_INPUTS}
    computed = [value.name or "" for value in (*carried, *shaped) if not value.is_graph_input()]
    _write(model, shared, dict.fromkeys(computed), paths[PREFIX])  # without types and shapes: running it finds them
    shapes = _probed(paths[PREFIX], component)
    if shapes is None:
        return None
    outputs = {value.name or "": _declared(value.name or "", shapes) for value in carried}
    inputs = _write(model, shared, outputs, paths[PREFIX])
    if not _read_shapes_from(model, carried, shaped, shapes):
        return None
    others = {name: tensor for name, tensor in full.inputs.items() if name != "sample"}
    return {PREFIX: (inputs, outputs), FULL: (_write(model, outputs | others, full.outputs, paths[FULL]), full.outputs)}


def _write(model: ir.Model, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None], path: Path) -> dict[str, Tensor]:
    """Write the part of `model` between `inputs` and `outputs` to `path`; return the inputs that it uses."""
    graph = between(model, inputs, outputs)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)  # OpenVINO mixes up inputs if one is unused
    ports = {**inputs, **outputs}
    for value in (*graph.inputs, *graph.outputs):
        declared = ports[value.name or ""]
        if declared is not None:
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(declared.dtype))), ir.Shape(declared.shape)
    for value in factors(model.graph.initializers, list(graph.initializers)):
        graph.initializers.add(ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value))
    graph.sort()
    save.save_beside(ir.Model(graph, ir_version=model.ir_version), path)
    return {name: inputs[name] for value in graph.inputs if (name := value.name or "")}


def _probed(prefix: Path, component: Component) -> _Shapes | None:
    """Run the graph `prefix` on `PROBES`; return the shapes of its inputs and outputs, or None if it computes in half precision."""
    session = open_graph(prefix, lean=True)
    try:
        if any(tensor.dtype != "float32" for tensor in session.outputs.values()):
            return None
        probes = [step_caching.feeds(component, **sizes) for sizes in PROBES]
        results = [{**feeds, **session.run({name: feeds[name] for name in session.inputs})} for feeds in probes]
    finally:
        session.close()
    first, second = ({name: array.shape for name, array in arrays.items()} for arrays in results)
    return first, second


def _declared(name: str, shapes: _Shapes) -> Tensor:
    """Return the declaration of an output of the prefix; the batch and dimensions that depend on the size of the latents are symbolic."""
    _, *sizes = zip(shapes[0][name], shapes[1][name], strict=True)
    dimensions = (first if first == second else f"{name}_{axis}" for axis, (first, second) in enumerate(sizes, 1))
    return Tensor("float32", ("batch_size", *dimensions))


def _read_shapes_from(model: ir.Model, carried: Sequence[ir.Value], shaped: Sequence[ir.Value], shapes: _Shapes) -> bool:
    """Read the shapes of `shaped` from `carried` tensors instead; False if none of them has the same dimensions.

    Shapes are not passed on as tensors, because a provider that fixes all shapes would not know the shapes that depend on them.
    """
    for value in shaped:
        for node in [use.node for use in value.uses() if use.node.op_type == "Shape"]:
            wanted = range(len(shapes[0][value.name or ""]))[attribute(node, "start", 0) : attribute(node, "end")]
            for other in carried:
                axes = [_axis(value.name or "", axis, other.name or "", shapes) for axis in wanted]
                found = [axis for axis in axes if axis is not None]
                if len(found) == len(axes):
                    break
            else:
                return False
            shape = ir.node("Shape", [other])
            gathered = ir.node("Gather", [shape.outputs[0], integers(model, *found)])
            model.graph.insert_before(node, [shape, gathered])
            node.outputs[0].replace_all_uses_with(gathered.outputs[0])
    return True


def _axis(name: str, axis: int, other: str, shapes: _Shapes) -> int | None:
    """Return the axis of `other` that has the size of axis `axis` of `name` for every size of the latents."""
    sizes = [*zip(shapes[0][other], shapes[1][other], strict=True)]
    wanted = (shapes[0][name][axis], shapes[1][name][axis])
    if sizes[axis : axis + 1] == [wanted]:
        return axis
    return sizes.index(wanted) if wanted in sizes else None


def _agreement(source: Path, paths: Mapping[str, Path], component: Component) -> float:
    """Return the lowest SNR in dB of the outputs, both graphs together against the model."""
    feeds = step_caching.feeds(component)
    expected = step_caching.run(source, feeds)
    outputs = step_caching.run(paths[FULL], {**feeds, **step_caching.run(paths[PREFIX], feeds)})
    return min(parity.snr(value, outputs[name]) for name, value in expected.items())
