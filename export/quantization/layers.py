"""The layers of a graph: operators with a constant weight, with their biases, named after their weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graphs.edit import dims


@dataclass(frozen=True)
class Layer:
    """A Conv, MatMul, Gemm or Gather with a constant weight."""

    name: str
    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    axis: int
    """Axis of the output channels in the weight."""
    output: ir.Value
    """The float output, bias included."""

    @property
    def input(self) -> ir.Value:
        """The activation; for a Gather, the indices."""
        value = self.node.inputs[1 if self.node.op_type == "Gather" else 0]
        assert value is not None
        return value

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight; (in, out) for a MatMul."""
        assert self.weight.const_value is not None
        return dims(self.weight.const_value)

    @property
    def elements(self) -> int:
        """The number of elements of the weight."""
        assert self.weight.const_value is not None
        return int(self.weight.const_value.size)


def layers(model: ir.Model) -> list[Layer]:
    """Return the layers that can be quantized, in order."""
    found: list[Layer] = []
    for node in model.graph:
        number = 0 if node.op_type == "Gather" else 1
        if node.op_type not in {"Conv", "MatMul", "Gemm", "Gather"} or len(node.inputs) < 2:
            continue
        weight = node.inputs[number]
        if (
            weight is None
            or weight.const_value is None
            or weight.const_value.dtype != ir.DataType.FLOAT
            or len(weight.const_value.shape) < 2
        ):
            continue
        bias, output = node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
        if node.op_type == "MatMul":
            bias, output = _bias_after(node)
        axis = 1 if node.op_type == "MatMul" else 0
        found.append(Layer((weight.name or "").removesuffix(".weight"), node, weight, bias, axis, output))
    return found


def _bias_after(node: ir.Node) -> tuple[ir.Value | None, ir.Value]:
    """Return the bias that the only user of a MatMul adds, and the sum; otherwise None and the MatMul's output."""
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and users[0].idx == 0 and not node.outputs[0].is_graph_output():
        other = users[0].node.inputs[1]
        if other is not None and other.const_value is not None and len(other.const_value.shape) == 1:
            return other, users[0].node.outputs[0]
    return None, node.outputs[0]
