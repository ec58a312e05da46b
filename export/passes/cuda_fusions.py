"""Fusions for ONNX Runtime's CUDA and DirectML kernels for diffusion models.

Each pass checks the limits in the kernels' sources and declines what exceeds them, with a reason; `contrib_functions` defines what the
operators compute. Convolutions stay Conv, and their weights keep the layout of the state dict, so that LoRAs can be added: the CUDA
provider converts them to channels last when it creates a session (`prefer_nhwc`, in its wheels since 1.20) and removes the transposes
around them, the only ones that `layout.channels_last` leaves. FastGelu (GELU by tanh) is not used: it changes the results.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..graphs.edit import Pass, attribute, declined, nodes_of, producer, rank, replace, tidy
from .contrib_functions import call
from .layout import TO_FIRST, TO_LAST, permuted, transposed

_MAX_GROUP = 512
"""Largest number of channels in a group: contrib_ops/cuda/diffusion/group_norm_common_base.h, kMaxSize."""
_BIAS_SPLIT_GELU_SIZES = (2560, 5120, 10240)
"""Channels that contrib_ops/cuda/diffusion/bias_split_gelu_impl.cu is compiled for."""
_BIAS_ADD_SIZES = (320, 640, 1280)
"""Channels that contrib_ops/cuda/diffusion/bias_add.cc supports."""


def why_not_on_cuda(channels: int, groups: int) -> str:
    """Return why the CUDA kernel refuses this GroupNorm (group_norm_impl.cu, LaunchGroupNormKernel); empty if it accepts it."""
    if channels % groups:
        return f"{channels} channels are not divisible into {groups} groups"
    if channels // groups % 2:
        return f"the CUDA kernel needs an even number of channels per group, not {channels // groups}"
    if channels // groups > _MAX_GROUP:
        return f"the CUDA kernel needs at most {_MAX_GROUP} channels per group, not {channels // groups}"
    return ""


def fuse_group_norm(*, last: bool) -> Pass:
    """Return a pass: GroupNormalization, then SiLU → GroupNorm; with `last`, on channels last, Add before it → SkipGroupNorm.

    CUDA's kernel needs channels last; DirectML's supports both orders and is faster without transposes.
    """

    def fuse(model: ir.Model) -> ir.Model:
        for node in nodes_of(model, "GroupNormalization"):
            x, scale, bias = node.inputs
            if x is None or scale is None or bias is None or rank(x) != 4 or scale.const_value is None or bias.const_value is None:
                declined(model).append(f"{node.name}: GroupNorm needs a 4-dimensional input with constant scale and bias")
                continue
            reason = why_not_on_cuda(int(scale.const_value.size), int(attribute(node, "num_groups"))) if last else ""
            if reason:
                declined(model).append(f"{node.name}: {reason}")
                continue
            silu = _silu_after(node)
            attributes = {
                "groups": int(attribute(node, "num_groups")),
                "activation": int(silu is not node),
                "epsilon": attribute(node, "epsilon", 1e-5),
                "channels_last": int(last),
            }
            if last:
                _last_group_norm(model, silu, (x, scale, bias), attributes)
            else:
                new = call(model, "GroupNorm.first", [x, scale, bias], attributes)
                replace(silu, [new], new.outputs[0])
        return tidy(model)

    return fuse


def _silu_after(node: ir.Node) -> ir.Node:
    """Return the SiLU that is the only user of `node`, else `node`."""
    users = list(node.outputs[0].uses())
    single_user = len(users) == 1 and not node.outputs[0].is_graph_output()
    if single_user and users[0].node.op_type == "QuickGelu" and attribute(users[0].node, "alpha", 1.702) == 1.0:
        return users[0].node
    return node


def _last_group_norm(model: ir.Model, silu: ir.Node, inputs: tuple[ir.Value, ir.Value, ir.Value], attributes: dict[str, Any]) -> None:
    """Replace the nodes up to `silu` with GroupNorm between transposes, or with SkipGroupNorm if an Add comes before."""
    x, scale, bias = inputs
    add = producer(x, "Add")
    summands = None if add is None or x.is_graph_output() else _skip_summands(x, add)
    last = transposed(x if summands is None else summands[0], TO_LAST)
    nodes, kind, operands = [last], "GroupNorm", [last.outputs[0], scale, bias]
    if summands is not None:
        skip = summands[1]
        kind = "SkipGroupNorm.vector"
        if rank(skip) == 4:
            nodes.append(transposed(skip, TO_LAST))
            kind, skip = "SkipGroupNorm", nodes[-1].outputs[0]
        operands.append(skip)
    shared = summands is not None and len(x.uses()) > 1
    new = call(model, kind, operands, attributes, 2 if shared else 1)
    result = transposed(new.outputs[0], TO_FIRST)
    if add is not None and shared:
        summed = transposed(new.outputs[1], TO_FIRST)
        replace(add, [*nodes, new, summed], summed.outputs[0])
        replace(silu, [result], result.outputs[0])
    else:
        replace(silu, [*nodes, new, result], result.outputs[0])
    for value in (nodes[0].outputs[0], *new.outputs):
        value.shape, value.type = permuted(x, TO_LAST), x.type


def _skip_summands(x: ir.Value, add: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return the summands of `x` that SkipGroupNorm can add: an image, and an image of its shape or a vector (batch, channels)."""
    first, second = add.inputs
    if first is None or second is None or x.shape is None:
        return None
    if first.shape == x.shape and second.shape == x.shape:
        return first, second
    for image, other in ((first, second), (second, first)):
        unsqueeze = producer(other, "Unsqueeze")
        vector = None if unsqueeze is None else unsqueeze.inputs[0]
        broadcast = image.shape == x.shape and other.shape is not None and other.shape[2:] == (1, 1)
        if vector is not None and broadcast and vector.shape is not None and tuple(vector.shape) == tuple(x.shape[:2]):
            return image, vector
    return None


def fuse_skip_layer_norm(model: ir.Model) -> ir.Model:
    """Add (and the Add of a bias before it), LayerNormalization → SkipLayerNormalization, which also returns the sum."""
    for node in nodes_of(model, "LayerNormalization"):
        x, add = node.inputs[0], producer(node.inputs[0], "Add")
        if x is None or add is None or len(node.inputs) < 3 or rank(x) != 3 or attribute(node, "axis", -1) not in {-1, 2}:
            continue
        if any(value is None or value.shape != x.shape for value in add.inputs):
            continue  # the kernel only adds tensors of the same shape
        summands = _biased(add)
        kind, operands = "SkipLayerNormalization", [*add.inputs, *node.inputs[1:3]]
        if summands is not None:
            layer, bias, skip = summands
            kind, operands = "SkipLayerNormalization.biased", [layer, skip, *node.inputs[1:3], bias]
        shared = len(x.uses()) > 1 or x.is_graph_output()
        new = call(model, kind, operands, {"epsilon": attribute(node, "epsilon", 1e-5)}, 2 if shared else 1)
        if shared:
            replace(add, [new], new.outputs[1])
            replace(node, [], new.outputs[0])
        else:
            replace(node, [new], new.outputs[0])
    return tidy(model)


def _biased(add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return (layer, bias, other summand) if one summand of `add` is a layer plus its bias and has no other user."""
    for value, other in (add.inputs, add.inputs[::-1]):
        before = producer(value, "Add")
        if before is None or value is None or other is None or len(value.uses()) != 1 or value.is_graph_output():
            continue
        layer, bias = before.inputs
        if layer is not None and bias is not None and bias.const_value is not None and rank(bias) == 1 and layer.shape == value.shape:
            return layer, bias, other
    return None


def fuse_bias_add(model: ir.Model) -> ir.Model:
    """Add(Add(x, bias), skip) on tokens → BiasAdd, for the channels that its kernel supports."""
    for node in nodes_of(model, "Add"):
        summands, x = _biased(node), node.outputs[0]
        if summands is None or rank(x) != 3 or summands[2].shape != x.shape:
            continue
        layer, bias, skip = summands
        if int(bias.shape[0]) not in _BIAS_ADD_SIZES:  # pyright: ignore[reportOptionalSubscript, reportArgumentType]  # _biased checks it
            declined(model).append(f"{node.name}: BiasAdd supports {_BIAS_ADD_SIZES} channels, not {bias.shape}")
            continue
        new = call(model, "BiasAdd", [layer, bias, skip], {})
        replace(node, [new], new.outputs[0])
    return tidy(model)


def fuse_bias_split_gelu(model: ir.Model) -> ir.Model:
    """Add of a bias, Split into halves, left · Gelu(right) → BiasSplitGelu, for the channels that its kernel supports."""
    for split in nodes_of(model, "Split"):
        add, product = producer(split.inputs[0], "Add"), _gated(split)
        if add is None or product is None or len(add.outputs[0].uses()) != 1 or rank(add.outputs[0]) != 3:
            continue
        layer, bias = add.inputs
        if layer is None or bias is None or bias.const_value is None or rank(bias) != 1:
            continue
        if bias.const_value.size not in _BIAS_SPLIT_GELU_SIZES:
            declined(model).append(f"{split.name}: BiasSplitGelu supports {_BIAS_SPLIT_GELU_SIZES} channels, not {bias.const_value.size}")
            continue
        new = call(model, "BiasSplitGelu", [layer, bias], {})
        replace(product, [new], new.outputs[0])
    return tidy(model)


def _gated(split: ir.Node) -> ir.Node | None:
    """Return the Mul of the left half of `split` and the exact GELU of its right half, if nothing else uses the halves."""
    if len(split.outputs) != 2 or attribute(split, "axis", 0) not in {-1, 2} or any(len(half.uses()) != 1 for half in split.outputs):
        return None
    product, gelu = (next(iter(half.uses())).node for half in split.outputs)
    if gelu.op_type != "Gelu" or attribute(gelu, "approximate", "none") != "none" or product.op_type != "Mul":
        return None
    return product if set(product.inputs) == {split.outputs[0], gelu.outputs[0]} and len(gelu.outputs[0].uses()) == 1 else None
