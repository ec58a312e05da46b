"""From a torch module to an ONNX graph whose weights are still on disk.

Tracing works on placeholders; afterwards each initializer becomes a lazy tensor that reads its weight when it is asked
for. So a graph of any size costs no memory, and passes and writers take one tensor at a time.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from ..models.errors import NumericalError
from .component import Component
from .graph import initializer, lazy, nodes_of
from .reference import examples, tensors
from .source import Weights

OPSET = 23
"""The first with Attention: torch's attention stays one node, for the passes of each target to lower."""
_RULES = RewritePass([
    *(rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule),
    *(rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.materialize_reshape_shape_rule),
    *(rules.cast_cast_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule, rules.squeeze_reshape_1d_rule),
    *(rules.reshape_reshape_rule, rules.collapse_slice_rule, rules.flatten_to_reshape_rule),
    *(rules.one_reshape_matmul_reshape_rule, rules.two_reshapes_matmul_reshape_rule),
])  # fmt: skip
"""What traced graphs have too much of. All of onnxscript's rules take four times as long: one of them looks at each pair of nodes."""
_AFTER = (
    common.IdentityEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)


def trace(component: Component) -> ir.Model:
    """The graph of `component` at opset 23 with free dimensions, simplified; initializers keep the names of the weights.

    Raises:
        NumericalError: torch cannot trace the module, or specialised a dimension that has to stay free.
    """
    ports = component.inputs
    # Odd sizes, so that the traced graph takes its up-sampling sizes from the skip connections and every size works.
    size = (48, 80) if component.name == "vae_encoder" else (19, 21)
    feeds = examples(component, size, batch=2, tokens=7, timestep=500.0, seed=0)
    arguments = tensors(feeds[port.name] for port in ports)
    shapes = [{axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in ports]
    if component.name == "unet" and len(shapes) > 3:
        shapes = [*shapes[:3], tuple(shapes[3:])]  # the wrapper's additional inputs come as one *argument
    with _quiet(), torch.no_grad():
        # Exported here, since torch.onnx.export falls from non-strict back to strict tracing on free sizes, which takes thrice the time.
        exported = torch.export.export(component.module, arguments, dynamic_shapes=tuple(shapes), strict=False)
        model = _translated(exported, component)
    _name_ports(model, component)
    _simplify(model)
    _attach(model, component.prefix, component.weights)
    _name_dimensions(model, component)
    return model


def _translated(exported: torch.export.ExportedProgram, component: Component) -> ir.Model:
    """The ONNX graph of what torch traced.

    The exporter would trace all of it again to take operators apart, in half of the whole time; but nearly all of them have an
    ONNX form as they are. Where one has none, it may take them apart.
    """
    if _plain(exported):
        program: Any = exported

        def as_it_is(_table: object = None) -> torch.export.ExportedProgram:
            return exported

        whole, program.run_decompositions = program.run_decompositions, as_it_is
        with suppress(cast("Any", torch).onnx.errors.OnnxExporterError):
            return _to_onnx(exported, component)
        program.run_decompositions = whole
    return _to_onnx(exported, component)


def _to_onnx(exported: torch.export.ExportedProgram, component: Component) -> ir.Model:
    return (
        cast("Any", torch)
        .onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in component.inputs],
            output_names=[port.name for port in component.outputs],
        )
        .model
    )


def _plain(exported: torch.export.ExportedProgram) -> bool:
    """Makes what only says a type or trains go or take a form that ONNX has; False where an operator writes into its input."""
    aten = cast("Any", torch).ops.aten
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            return False
        first: Any = node.args[0] if node.args else None
        if node.target in {aten.to.dtype, aten.reshape.default, aten.view.default}:
            idle = _kind(first) == _kind(node)
        else:
            idle = node.target is aten.contiguous.default or (node.target is aten.dropout.default and not node.args[2])
        if idle:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
        elif node.target is aten.to.dtype:
            node.target, node.args, node.kwargs = aten._to_copy.default, (first,), {"dtype": node.args[1]}  # noqa: SLF001  # an operator's name
    return True


def _kind(node: torch.fx.Node) -> list[str]:
    """Type and dimensions of a tensor; as text, since comparing free dimensions would fix them."""
    return [str(node.meta["val"].dtype), *map(str, node.meta["val"].shape)]


def _name_ports(model: ir.Model, component: Component) -> None:
    for value, port in zip(model.graph.outputs, component.outputs, strict=True):
        value.name = port.name


def _simplify(model: ir.Model) -> None:
    """Folds constants, with the weights passed off as inputs meanwhile: a placeholder must never be folded."""
    weights = list(model.graph.initializers.values())
    for value in weights:
        del model.graph.initializers[value.name or ""]
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.inline(model)
    for _ in range(2):
        cast("Any", optimizer).fold_constants(model, should_fold=_is_not_exponential)
        _fold_exponentials(model)
        _RULES(model)
        common.RemoveUnusedNodesPass()(model)
    for one in _AFTER:
        one(model)
    for value in weights:
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.initializers.add(value)


def _is_not_exponential(node: ir.Node) -> bool | None:
    return False if node.op_type == "Exp" else None


def _fold_exponentials(model: ir.Model) -> None:
    """Folds exponentials of constants as torch computes them. NumPy's differ from them in the last bits, and these are the frequencies
    of the time embedding: at step 999 they would move its angles by 1e-4, and SDXL's U-Net to 99 dB of torch's.
    """
    for node in nodes_of(model, "Exp"):
        power, result = node.inputs[0], node.outputs[0]
        if power is not None and power.const_value is not None:
            values = torch.exp(tensors([power.const_value.numpy()])[0]).numpy()
            result.replace_all_uses_with(initializer(model, f"{result.name}.folded", values))
            model.graph.remove(node, safe=True)


def _attach(model: ir.Model, prefix: str, weights: Weights) -> None:
    """Gives each initializer its weight's name and its weight, unread."""
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None:
            continue
        del model.graph.initializers[value.name or ""]
        value.name = (value.name or "").removeprefix(prefix)
        if value.name not in weights.shapes:
            raise NumericalError(f"the traced graph needs {value.name!r}, which is no weight of the model: a buffer cannot be exported")
        value.const_value = lazy(value.name, weights.shapes[value.name], partial(weights.read, value.name))
        value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
        model.graph.initializers.add(value)


def _name_dimensions(model: ir.Model, component: Component) -> None:
    """Free dimensions get their names everywhere: torch's symbol for the height becomes `height`, also inside of expressions."""
    names: dict[str, str] = {}
    for value, port in zip(model.graph.inputs, component.inputs, strict=True):
        for axis, dim in enumerate(port.shape):
            got = value.shape[axis] if value.shape is not None else None
            if isinstance(dim, int) != isinstance(got, int):
                raise NumericalError(f"{component.name}: tracing fixed dimension {axis} of {port.name} to {got}, which has to stay free")
            if isinstance(dim, str):
                names[str(got)] = dim
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([dim if isinstance(dim, int) else _renamed(str(dim), names) for dim in value.shape])
    for value, port in (*zip(model.graph.inputs, component.inputs, strict=True), *zip(model.graph.outputs, component.outputs, strict=True)):
        value.shape = ir.Shape(port.shape)


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), expression)


@contextmanager
def _quiet() -> Generator[None]:
    """Torch's exporter talks about its own internals: about torchvision, deprecated calls, and what it did to dimensions."""
    root = logging.getLogger("torch.onnx")
    level = root.level
    root.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.setLevel(level)
