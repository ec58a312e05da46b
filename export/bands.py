"""An autoencoder's half cut at its group normalizations, into graphs that work on some rows at a time.

A group normalization needs the mean and variance of the whole tensor; everything else in the high resolutions needs a few rows
around its own. So a piece begins with normalizing (a scale and a shift for each channel, given from outside) and ends with what
is normalized next, and the sums that its mean and variance come from. `runtime/bands.py` runs them one after the other, each on
full-width bands of rows: what comes out is what the whole graph gives, to rounding, in a fraction of the memory.

What lies at the lowest resolution, attention included, stays one piece that is run whole. All share the weight file.

Between two pieces a tensor waits until the mean and variance of all of it are known, so that all of it goes through memory. What is
made of 8-bit tensors, a residual sum for one, waits as these, and is made again by each piece that takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx_ir as ir

from ..models.manifest import Bands, Component, Graph, Norm, Target, Tensor
from . import parity, remade, rows, write
from .calibrate import open_graph, run_in_bands
from .graph import between, integers, is_constant, tidy
from .pieces import Feeds

HALVES = ("vae_encoder", "vae_decoder")
LARGE = 16 << 20
"""Bytes of a half below which it stays whole: its pictures are small, and it is open before many pieces would be."""
BAR = 60.0
"""dB that the pieces together have to agree with the graph that they are cut from; they are equal but for the order of sums."""
BELOW = 3.0
"""dB that they may agree worse than the graph does with its model, where it rounds to 8 bit: a sum that is off by the last bit rounds
to another number there, and what follows is off by as much as rounding costs anyway, once for each of the two."""
SIDE = 16
"""Side of the recorded latents that the two are compared on, at most, in latent pixels."""
SCALE, SHIFT, SUMS, SQUARES = ".scale", ".shift", ".sums", ".squares"
"""What the inputs and outputs that belong to a normalized tensor have after its name."""


def pays(folder: Path, target: Target) -> bool:
    """Whether the half of an autoencoder in `folder` gains by being cut: a large one, for a processor rather than a GPU."""
    return target in {"cpu", "portable"} and sum(path.stat().st_size for path in folder.iterdir()) >= LARGE


def opened(model: ir.Model) -> dict[str, Norm]:
    """Takes scale and shift of the normalizations above the lowest resolution from inputs; gives the normalized tensors' names."""
    scales = rows.scales(model)
    lowest = min(scales.values())
    found: dict[str, Norm] = {}
    for normal in list(rows.normals(model)):
        name = normal.x.name or ""
        if scales.get(id(normal.x), lowest) == lowest or name in found:
            continue
        found[name] = normal.norm
        given = [_port(name + end, ("batch_size", f"{name}.channels", 1, 1)) for end in (SCALE, SHIFT)]
        model.graph.inputs.extend(given)
        _replace_normal(model, normal, *given)
    tidy(model)
    return found


def _replace_normal(model: ir.Model, normal: rows.Normal, scale: ir.Value, shift: ir.Value) -> None:
    """Scale and shift `x` instead; the constants that a channel is scaled and shifted with behind it go into them, which are small."""
    joined, last = normal.out.producer(), normal.out
    assert joined is not None
    before: list[ir.Node] = []
    gain, offset = _only_user(last, "Mul"), None
    if gain is not None:
        weight = _other(gain, last)
        offset = _only_user(gain.outputs[0], "Add")
        bias = None if offset is None else _other(offset, gain.outputs[0])
        if offset is not None and is_constant(weight) and is_constant(bias):
            product = ir.node("Mul", [scale, weight])
            moved = ir.node("Mul", [shift, weight])
            total = ir.node("Add", [moved.outputs[0], bias])
            before = [product, moved, total]
            scale, shift, last = product.outputs[0], total.outputs[0], offset.outputs[0]
    scaled = ir.node("Mul", [normal.x, scale])
    shifted = ir.node("Add", [scaled.outputs[0], shift])
    place = last.producer()
    assert place is not None
    model.graph.insert_after(place, [*before, scaled, shifted])
    last.replace_all_uses_with(shifted.outputs[0], replace_graph_outputs=True)


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == kind and not value.is_graph_output() else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((one for one in node.inputs if one is not value), None)


def _port(name: str, shape: Sequence[int | str]) -> ir.Value:
    return ir.val(name, ir.DataType.FLOAT, list(shape))


def places(model: ir.Model, normalized: Collection[str]) -> dict[int, int]:
    """The number of the piece that each node belongs to, by the node's id; what only constants go into belongs to none.

    A piece ends with what is normalized, with what is enlarged, and where the lowest resolution is entered from a higher one.
    """
    scales = rows.scales(model)
    lowest = min(scales.values())
    ends = {id(value) for node in model.graph for value in node.outputs if value.name in normalized}
    found: dict[int, int] = {}
    pixels = {id(value) for value in model.graph.inputs if id(value) in scales}
    for node in model.graph:
        given = [value for value in node.inputs if value is not None and id(value) in pixels]
        if not given:
            continue
        pixels |= {id(value) for value in node.outputs}
        before, after = scales.get(id(given[0])), scales.get(id(node.outputs[0]))
        if before is not None and after is not None and before < after:
            ends.add(id(given[0]))
        elif before is not None and after == lowest < before:
            ends.add(id(node.outputs[0]))
        found[id(node)] = max(_number(value, found) + (id(value) in ends) for value in given)
    return found


def _number(value: ir.Value, numbers: Mapping[int, int]) -> int:
    node = value.producer()
    return 0 if node is None else numbers[id(node)]


@dataclass(frozen=True)
class Piece:
    """Some nodes of a model, which pieces with lower numbers come before."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    normalized: frozenset[str]
    """Names of the tensors that it normalizes: inputs, or what it makes again of them."""
    summed: frozenset[str]
    """Names of the tensors that it makes and a later piece normalizes."""
    halo: int | None
    rows: dict[str, int]
    channels: dict[str, int]


def pieces(model: ir.Model, normalized: Collection[str]) -> list[Piece]:
    """What `model`, whose normalizations are `opened`, falls into; empty where the high resolutions cannot be cut into rows."""
    numbers = remade.copied(model, places(model, normalized))
    scales, channels = rows.scales(model), rows.channels(model)
    made = {value.name or "": value for node in model.graph for value in node.outputs if value.name in normalized}
    found: list[Piece] = []
    for number in range(1 + max(numbers.values())):
        nodes = [node for node in model.graph if numbers.get(id(node)) == number]
        inputs, outputs = _between(nodes, numbers, number)
        own = frozenset(name for name in normalized if _first(model, name + SCALE, numbers) == number)
        summed = [value for value in made.values() if _number(value, numbers) == number]
        given = [*outputs, *(value for value in summed if value not in outputs)]
        known = [scales.get(id(value)) for value in (*inputs, *given)]
        unit = min((scale for scale in known if scale is not None), default=Fraction(1))
        if not all(scale is not None and (scale / unit).denominator == 1 for scale in known):
            return []
        if not all(id(value) in channels for value in (*inputs, *given, *(made[name] for name in own))):
            return []
        wide = {value.name or "": channels[id(value)] for value in (*inputs, *given, *(made[name] for name in own))}
        times = {value.name or "": int(scales[id(value)] / unit) for value in (*inputs, *given)}
        halo = rows.halo(nodes, times, inputs, given)
        found.append(Piece(tuple(inputs), tuple(outputs), own, frozenset(value.name or "" for value in summed), halo, times, wide))
    return found if any(piece.halo is not None for piece in found) else []


def _first(model: ir.Model, port: str, numbers: Mapping[int, int]) -> int | None:
    """The number of the piece that an input which is no pixels goes into."""
    waiting = [value for value in model.graph.inputs if value.name == port]
    while waiting:
        for use in waiting.pop().uses():
            if id(use.node) in numbers:
                return numbers[id(use.node)]
            waiting.extend(use.node.outputs)
    return None


def _between(nodes: Sequence[ir.Node], numbers: Mapping[int, int], number: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """The tensors that the piece of `nodes` takes from earlier ones, or from outside, and those that it gives to later ones, or outside."""
    inputs: dict[int, ir.Value] = {}
    outputs: dict[int, ir.Value] = {}
    for node in nodes:
        for value in node.inputs:
            made = None if value is None else value.producer()
            given = value is not None and value.is_graph_input() and not (value.name or "").endswith((SCALE, SHIFT))
            if value is not None and (given or (made is not None and numbers.get(id(made), number) < number)):
                inputs[id(value)] = value
        for value in node.outputs:
            if value.is_graph_output() or any(numbers[id(use.node)] > number for use in value.uses()):
                outputs[id(value)] = value
    return list(inputs.values()), list(outputs.values())


def add(folder: Path, component: Component, recorded: Feeds | None = None) -> tuple[Component, str]:
    """Writes `band-00.onnx` and so on beside the graph of `component` in `folder`, if it can be cut. `recorded` is what it was given
    when a picture was drawn: ranges of 8 bit hold for such alone.

    Gives the component that knows them, and otherwise the same one and why not. Nothing is kept that does not agree with the
    graph itself.
    """
    model: ir.Model = cast("Any", ir).load(folder / write.GRAPH)
    normalized = opened(model)
    found = pieces(model, normalized) if normalized else []
    if not found:
        return component, f"{folder.name}: no group normalizations to cut it at: it works in tiles where memory is scarce"
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    for name in normalized:
        _give_sums(model, values[name])
    graphs: dict[str, Graph] = {}
    for number, piece in enumerate(found):
        name = f"band-{number:02}"
        graphs[name] = _write(model, piece, normalized, folder / f"{name}.onnx")
    made = msgspec.structs.replace(component, graphs={**component.graphs, **graphs})
    agreement, bar = _agreement(folder, made, min(rows.scales(model).values()), recorded), _bar(component)
    if agreement < bar:
        for name in graphs:
            (folder / f"{name}.onnx").unlink()
        return component, f"{folder.name}: its pieces give {agreement:.1f} dB, expected {bar:.0f}: it works in tiles where memory is scarce"
    return made, ""


def _bar(component: Component) -> float:
    return BAR if component.parity_db is None else min(BAR, component.parity_db - BELOW)


def _agreement(folder: Path, component: Component, lowest: Fraction, recorded: Feeds | None) -> float:
    """How the pieces, on bands of a few rows, agree with the graph: the worst SNR in dB, on the corner of what was recorded or on noise."""
    (name, tensor), channels = next(iter(component.inputs.items())), next(iter(component.inputs.values())).shape[1]
    assert isinstance(channels, int)
    shape = (1, channels, 4 * lowest.denominator, 6 * lowest.denominator)
    if recorded is None:
        feeds = {name: np.random.default_rng(0).standard_normal(shape).astype(tensor.dtype)}
    else:
        side = SIDE * lowest.denominator
        feeds = {name: np.ascontiguousarray(recorded[name][:1, :, :side, :side])}
    expected = open_graph(folder / write.GRAPH, lean=True).run(feeds)
    found = run_in_bands(folder, component, feeds, 1 << 19)
    return min(parity.snr(value, found[output]) for output, value in expected.items())


def _give_sums(model: ir.Model, value: ir.Value) -> None:
    """Sums over the width, of `value` and of its squares."""
    node = value.producer()
    assert node is not None
    square = ir.node("Mul", [value, value])
    sums, squares = (ir.node("ReduceSum", [one, integers(model, 3)], {"keepdims": 0}) for one in (value, square.outputs[0]))
    sums.outputs[0].name, squares.outputs[0].name = f"{value.name}{SUMS}", f"{value.name}{SQUARES}"
    model.graph.insert_after(node, [square, sums, squares])


def _write(model: ir.Model, piece: Piece, normalized: Mapping[str, Norm], path: Path) -> Graph:
    """Writes `piece` of `model` to `path`."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for value in (*piece.inputs, *piece.outputs):
        name, side = value.name or "", inputs if value in piece.inputs else outputs
        side[name] = Tensor(remade.dtype(value).numpy().name, ("batch_size", piece.channels[name], f"{name}.rows", f"{name}.columns"))
    for name in sorted(piece.normalized):
        inputs |= {name + end: Tensor("float32", ("batch_size", piece.channels[name], 1, 1)) for end in (SCALE, SHIFT)}
    for name in sorted(piece.summed):
        outputs |= {name + end: Tensor("float32", ("batch_size", piece.channels[name], f"{name}.rows")) for end in (SUMS, SQUARES)}
    graph = between(model, inputs, outputs)
    for value in (*graph.inputs, *graph.outputs):
        tensor = (inputs | outputs)[value.name or ""]
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(tensor.dtype))), ir.Shape(tensor.shape)
    write.save_beside(ir.Model(graph, ir_version=model.ir_version), path)
    bands = Bands(piece.rows, piece.halo, {name: normalized[name] for name in sorted(piece.normalized)})
    return Graph(f"{path.parent.name}/{path.name}", inputs, outputs, bands=bands)
