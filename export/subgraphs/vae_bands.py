"""Split half of an autoencoder at its group normalizations into pieces that run on bands of rows.

A group normalization needs mean and variance of the whole tensor; the other operators at high resolutions need a few neighbouring rows. So
a piece begins with normalizing (a scale and a shift per channel, from inputs) and ends with the next tensor to normalize and the sums for
its mean and variance. `runtime/engine/vae_bands.py` runs the pieces one after the other, each on full-width bands of rows. The result
equals that of the whole graph, to rounding, in a fraction of the memory.

The nodes at the lowest resolution, attention included, are one piece, which runs on whole tensors. All pieces share the weight file.

A tensor between two pieces is stored as a whole until its mean and variance are known. A tensor that is computed from int8 tensors, for
example a residual sum, is stored as those, and each piece that reads it recomputes it.
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

from ...models.manifest import Bands, Component, Graph, Norm, Target, Tensor
from ..graphs import parity, save
from ..graphs.edit import between, integers, is_constant, tidy
from ..graphs.run_in_pieces import Feeds
from ..runtime_bridge import open_graph, run_in_bands
from . import receptive_field, rematerialize

HALVES = ("vae_encoder", "vae_decoder")
LARGE = 16 << 20
"""Bytes from which a half is split: smaller ones have small images, and open faster than many pieces."""
BAR = 60.0
"""Minimum SNR in dB of the pieces against the whole graph; only the order of sums differs."""
MARGIN = 3.0
"""dB by which the SNR of int8 pieces may be below the graph's own SNR against float: where a sum differs in its last bit, int8 can round to
the other neighbour, and then pieces and graph each have their own rounding error."""
SIDE = 16
"""Maximum side in latent pixels of the recorded input for the comparison."""
SCALE, SHIFT, SUMS, SQUARES = ".scale", ".shift", ".sums", ".squares"
"""Suffixes of the graph inputs and outputs that belong to a normalized tensor."""


def pays(folder: Path, target: Target) -> bool:
    """Whether to split the half of an autoencoder in `folder`: if it is large and runs on the CPU."""
    return target in {"cpu", "portable"} and sum(path.stat().st_size for path in folder.iterdir()) >= LARGE


def externalize_normalizations(model: ir.Model) -> dict[str, Norm]:
    """Replace the normalizations above the lowest resolution with a scale and a shift from graph inputs.

    Returns the normalizations by the name of the normalized tensor.
    """
    scales = receptive_field.row_scales(model)
    lowest = min(scales.values())
    found: dict[str, Norm] = {}
    for normalization in list(receptive_field.normalizations(model)):
        name = normalization.x.name or ""
        if scales.get(id(normalization.x), lowest) == lowest or name in found:
            continue
        found[name] = normalization.norm
        inputs = [_port(name + suffix, ("batch_size", f"{name}.channels", 1, 1)) for suffix in (SCALE, SHIFT)]
        model.graph.inputs.extend(inputs)
        _replace_normalization(model, normalization, *inputs)
    tidy(model)
    return found


def _replace_normalization(model: ir.Model, normalization: receptive_field.Normalization, scale: ir.Value, shift: ir.Value) -> None:
    """Scale and shift `x` instead; a constant scale and shift per channel after it are merged into these, which are small."""
    last = normalization.output
    before: list[ir.Node] = []
    mul, add = _only_user(last, "Mul"), None
    if mul is not None:
        weight = _other_input(mul, last)
        add = _only_user(mul.outputs[0], "Add")
        bias = None if add is None else _other_input(add, mul.outputs[0])
        if add is not None and is_constant(weight) and is_constant(bias):
            new_scale = ir.node("Mul", [scale, weight])
            scaled_shift = ir.node("Mul", [shift, weight])
            new_shift = ir.node("Add", [scaled_shift.outputs[0], bias])
            before = [new_scale, scaled_shift, new_shift]
            scale, shift, last = new_scale.outputs[0], new_shift.outputs[0], add.outputs[0]
    scaled = ir.node("Mul", [normalization.x, scale])
    shifted = ir.node("Add", [scaled.outputs[0], shift])
    node = last.producer()
    assert node is not None
    model.graph.insert_after(node, [*before, scaled, shifted])
    last.replace_all_uses_with(shifted.outputs[0], replace_graph_outputs=True)


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == kind and not value.is_graph_output() else None


def _other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((operand for operand in node.inputs if operand is not value), None)


def _port(name: str, shape: Sequence[int | str]) -> ir.Value:
    return ir.val(name, ir.DataType.FLOAT, list(shape))


def assign_pieces(model: ir.Model, normalized: Collection[str]) -> dict[int, int]:
    """Return the number of the piece of each node, by the node's id; nodes that only depend on constants have none.

    A piece ends at a tensor to normalize, at a tensor to upsample, and where the lowest resolution begins.
    """
    scales = receptive_field.row_scales(model)
    lowest = min(scales.values())
    ends = {id(value) for node in model.graph for value in node.outputs if value.name in normalized}
    piece_of: dict[int, int] = {}
    dependent = {id(value) for value in model.graph.inputs if id(value) in scales}
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None and id(value) in dependent]
        if not inputs:
            continue
        dependent |= {id(value) for value in node.outputs}
        before, after = scales.get(id(inputs[0])), scales.get(id(node.outputs[0]))
        if before is not None and after is not None and before < after:
            ends.add(id(inputs[0]))
        elif before is not None and after == lowest < before:
            ends.add(id(node.outputs[0]))
        piece_of[id(node)] = max(_piece_number(value, piece_of) + (id(value) in ends) for value in inputs)
    return piece_of


def _piece_number(value: ir.Value, piece_of: Mapping[int, int]) -> int:
    """Return the number of the piece that computes `value`; 0 for graph inputs."""
    node = value.producer()
    return 0 if node is None else piece_of[id(node)]


@dataclass(frozen=True)
class Piece:
    """A part of a model; it only depends on pieces with lower numbers."""

    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    normalized: frozenset[str]
    """Names of the tensors that it normalizes: inputs, or tensors that it recomputes from inputs."""
    summed: frozenset[str]
    """Names of the tensors that it computes and a later piece normalizes."""
    halo: int | None
    """Rows above and below a band, in rows of the coarsest tensor; None if the piece runs on whole tensors."""
    rows: dict[str, int]
    """Rows of each input and output per row of the coarsest tensor."""
    channels: dict[str, int]


def pieces(model: ir.Model, normalized: Collection[str]) -> list[Piece]:
    """Split `model`, whose normalizations are externalized; empty if the high resolutions cannot run on bands of rows."""
    piece_of = rematerialize.recompute(model, assign_pieces(model, normalized))
    scales, channels = receptive_field.row_scales(model), receptive_field.channels(model)
    found: list[Piece] = []
    for number in range(1 + max(piece_of.values())):
        piece = _piece(model, number, piece_of, normalized, scales, channels)
        if piece is None:
            return []
        found.append(piece)
    return found if any(piece.halo is not None for piece in found) else []


def _piece(
    model: ir.Model,
    number: int,
    piece_of: Mapping[int, int],
    normalized: Collection[str],
    scales: Mapping[int, Fraction],
    channels: Mapping[int, int],
) -> Piece | None:
    """Return piece `number`; None if the rows or channels of one of its tensors are unknown."""
    tensors = {value.name or "": value for node in model.graph for value in node.outputs if value.name in normalized}
    nodes = [node for node in model.graph if piece_of.get(id(node)) == number]
    inputs, outputs = _inputs_and_outputs(nodes, piece_of, number)
    own = frozenset(name for name in normalized if _reading_piece(model, name + SCALE, piece_of) == number)
    summed = [value for value in tensors.values() if _piece_number(value, piece_of) == number]
    results = [*outputs, *(value for value in summed if value not in outputs)]
    rows = _rows((*inputs, *results), scales)
    described = (*inputs, *results, *(tensors[name] for name in own))
    if rows is None or not all(id(value) in channels for value in described):
        return None
    return Piece(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        normalized=own,
        summed=frozenset(value.name or "" for value in summed),
        halo=receptive_field.halo(nodes, rows, inputs, results),
        rows=rows,
        channels={value.name or "": channels[id(value)] for value in described},
    )


def _rows(values: Sequence[ir.Value], scales: Mapping[int, Fraction]) -> dict[str, int] | None:
    """Return the rows of each tensor per row of the coarsest one; None if they are unknown or not whole numbers."""
    known = {value.name or "": scales[id(value)] for value in values if id(value) in scales}
    unit = min(known.values(), default=Fraction(1))
    if any(id(value) not in scales for value in values) or any((scale / unit).denominator != 1 for scale in known.values()):
        return None
    return {name: int(scale / unit) for name, scale in known.items()}


def _reading_piece(model: ir.Model, name: str, piece_of: Mapping[int, int]) -> int | None:
    """Return the number of the piece that reads the scale or shift `name`, a graph input."""
    waiting = [value for value in model.graph.inputs if value.name == name]
    while waiting:
        for use in waiting.pop().uses():
            if id(use.node) in piece_of:
                return piece_of[id(use.node)]
            waiting.extend(use.node.outputs)
    return None


def _inputs_and_outputs(nodes: Sequence[ir.Node], piece_of: Mapping[int, int], number: int) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return the tensors that the piece reads from earlier pieces or the graph's inputs, and those that later pieces or callers read."""
    inputs: dict[int, ir.Value] = {}
    outputs: dict[int, ir.Value] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and _is_from_outside(value, piece_of, number):
                inputs[id(value)] = value
        for value in node.outputs:
            if value.is_graph_output() or any(piece_of[id(use.node)] > number for use in value.uses()):
                outputs[id(value)] = value
    return list(inputs.values()), list(outputs.values())


def _is_from_outside(value: ir.Value, piece_of: Mapping[int, int], number: int) -> bool:
    """Whether piece `number` gets `value` from an earlier piece or as an image input of the graph."""
    node = value.producer()
    if node is None:
        return value.is_graph_input() and not (value.name or "").endswith((SCALE, SHIFT))
    return piece_of.get(id(node), number) < number


def add(folder: Path, component: Component, recorded: Feeds | None = None) -> tuple[Component, str]:
    """Write the pieces `band-00.onnx`, `band-01.onnx`, … beside the graph of `component` in `folder`.

    `recorded` is an input of the component from generating an image: int8 ranges only hold for real inputs. Returns the component with the
    pieces. If the graph cannot be split, or the pieces do not agree with it, returns the same component and the reason.
    """
    model: ir.Model = cast("Any", ir).load(folder / save.GRAPH)
    normalized = externalize_normalizations(model)
    found = pieces(model, normalized) if normalized else []
    if not found:
        return component, f"{folder.name}: no group normalizations to split it at: it runs in tiles if memory is scarce"
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    for name in normalized:
        _add_sums(model, values[name])
    graphs: dict[str, Graph] = {}
    for number, piece in enumerate(found):
        name = f"band-{number:02}"
        graphs[name] = _write(model, piece, normalized, folder / f"{name}.onnx")
    split = msgspec.structs.replace(component, graphs={**component.graphs, **graphs})
    db, bar = _agreement(folder, split, min(receptive_field.row_scales(model).values()), recorded), _bar(component)
    if db < bar:
        for name in graphs:
            (folder / f"{name}.onnx").unlink()
        return component, f"{folder.name}: its pieces reach {db:.1f} dB, expected {bar:.0f}: it runs in tiles if memory is scarce"
    return split, ""


def _bar(component: Component) -> float:
    return BAR if component.parity_db is None else min(BAR, component.parity_db - MARGIN)


def _agreement(folder: Path, component: Component, lowest: Fraction, recorded: Feeds | None) -> float:
    """Return the lowest SNR in dB of the pieces, on bands of a few rows, against the graph; on a crop of `recorded` or on noise."""
    (name, tensor), channels = next(iter(component.inputs.items())), next(iter(component.inputs.values())).shape[1]
    assert isinstance(channels, int)
    shape = (1, channels, 4 * lowest.denominator, 6 * lowest.denominator)
    if recorded is None:
        feeds = {name: np.random.default_rng(0).standard_normal(shape).astype(tensor.dtype)}
    else:
        side = SIDE * lowest.denominator
        feeds = {name: np.ascontiguousarray(recorded[name][:1, :, :side, :side])}
    expected = open_graph(folder / save.GRAPH, lean=True).run(feeds)
    outputs = run_in_bands(folder, component, feeds, 1 << 19)
    return min(parity.snr(value, outputs[output]) for output, value in expected.items())


def _add_sums(model: ir.Model, value: ir.Value) -> None:
    """Add nodes that sum `value` and its squares over the width."""
    node = value.producer()
    assert node is not None
    square = ir.node("Mul", [value, value])
    sums, squares = (ir.node("ReduceSum", [summand, integers(model, 3)], {"keepdims": 0}) for summand in (value, square.outputs[0]))
    sums.outputs[0].name, squares.outputs[0].name = f"{value.name}{SUMS}", f"{value.name}{SQUARES}"
    model.graph.insert_after(node, [square, sums, squares])


def _write(model: ir.Model, piece: Piece, normalized: Mapping[str, Norm], path: Path) -> Graph:
    """Write `piece` of `model` to `path`."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for value in (*piece.inputs, *piece.outputs):
        name, ports = value.name or "", inputs if value in piece.inputs else outputs
        ports[name] = Tensor(
            rematerialize.dtype(value).numpy().name, ("batch_size", piece.channels[name], f"{name}.rows", f"{name}.columns")
        )
    for name in sorted(piece.normalized):
        inputs |= {name + suffix: Tensor("float32", ("batch_size", piece.channels[name], 1, 1)) for suffix in (SCALE, SHIFT)}
    for name in sorted(piece.summed):
        sums = Tensor("float32", ("batch_size", piece.channels[name], f"{name}.rows"))
        outputs |= {name + suffix: sums for suffix in (SUMS, SQUARES)}
    graph = between(model, inputs, outputs)
    for value in (*graph.inputs, *graph.outputs):
        tensor = (inputs | outputs)[value.name or ""]
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(np.dtype(tensor.dtype))), ir.Shape(tensor.shape)
    save.save_beside(ir.Model(graph, ir_version=model.ir_version), path)
    bands = Bands(piece.rows, piece.halo, {name: normalized[name] for name in sorted(piece.normalized)})
    return Graph(f"{path.parent.name}/{path.name}", inputs, outputs, bands=bands)
