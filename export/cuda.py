"""Passes towards ONNX Runtime's CUDA and DirectML kernels for diffusion models.

Each takes what the sources of the kernels say they can do, and declines the rest with a reason; `fused` says what they compute.
Convolutions stay Conv, with their weights as the state-dict has them (LoRAs are added to them as they are): the CUDA provider
turns them to channels last itself when a session is made (`prefer_nhwc`, in its wheels since 1.20), and `layout.channels_last`
leaves nothing but the transposes around them for it to take out. GELU by tanh (FastGelu) is not used: it changes the numbers.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .fused import call
from .graph import Pass, attribute, declined, nodes_of, producer, rank, replace, tidy
from .layout import TO_FIRST, TO_LAST, permuted, turned

_WIDEST = 512
"""Channels of a group: contrib_ops/cuda/diffusion/group_norm_common_base.h, kMaxSize."""
_SPLIT = (2560, 5120, 10240)
"""Sizes that contrib_ops/cuda/diffusion/bias_split_gelu_impl.cu is compiled for."""
_ADDED = (320, 640, 1280)
"""Likewise contrib_ops/cuda/diffusion/bias_add.cc."""


def why_not_on_cuda(channels: int, groups: int) -> str:
    """Why the CUDA kernel refuses such a GroupNorm (group_norm_impl.cu, LaunchGroupNormKernel); empty if it takes it."""
    if channels % groups:
        return f"{channels} channels cannot be parted into {groups} groups"
    if channels // groups % 2:
        return f"the CUDA kernel takes channels in pairs, and a group has {channels // groups}"
    if channels // groups > _WIDEST:
        return f"the CUDA kernel takes groups of at most {_WIDEST} channels, and these have {channels // groups}"
    return ""


def fuse_group_norm(*, last: bool) -> Pass:
    """A pass: GroupNormalization and SiLU after it → GroupNorm; on channels `last`, with the sum before it → SkipGroupNorm.

    CUDA's kernel wants channels last, DirectML's takes both orders and is faster without transposes.
    """

    def fuse(model: ir.Model) -> ir.Model:
        for node in nodes_of(model, "GroupNormalization"):
            x, scale, bias = node.inputs
            if x is None or scale is None or bias is None or rank(x) != 4 or scale.const_value is None or bias.const_value is None:
                declined(model).append(f"{node.name}: GroupNorm takes pictures of four dimensions with constant scale and shift")
                continue
            reason = why_not_on_cuda(int(scale.const_value.size), int(attribute(node, "num_groups"))) if last else ""
            if reason:
                declined(model).append(f"{node.name}: {reason}")
                continue
            silu = _silu_after(node)
            more = {
                "groups": int(attribute(node, "num_groups")),
                "activation": int(silu is not node),
                "epsilon": attribute(node, "epsilon", 1e-5),
                "channels_last": int(last),
            }
            if last:
                _last_group_norm(model, silu, (x, scale, bias), more)
            else:
                new = call(model, "GroupNorm.first", [x, scale, bias], more)
                replace(silu, [new], new.outputs[0])
        return tidy(model)

    return fuse


def _silu_after(node: ir.Node) -> ir.Node:
    """The SiLU that is the only user of `node`, or `node`."""
    users = list(node.outputs[0].uses())
    alone = len(users) == 1 and not node.outputs[0].is_graph_output()
    if alone and users[0].node.op_type == "QuickGelu" and attribute(users[0].node, "alpha", 1.702) == 1.0:
        return users[0].node
    return node


def _last_group_norm(model: ir.Model, silu: ir.Node, inputs: tuple[ir.Value, ir.Value, ir.Value], more: dict[str, Any]) -> None:
    """Puts GroupNorm, or SkipGroupNorm with the sum before it, between transposes in the place of what ends with `silu`."""
    x, scale, bias = inputs
    add = producer(x, "Add")
    parts = None if add is None or x.is_graph_output() else _skip(x, add)
    turn = turned(x, TO_LAST) if parts is None else turned(parts[0], TO_LAST)
    nodes, kind, operands = [turn], "GroupNorm", [turn.outputs[0], scale, bias]
    if parts is not None:
        skip = parts[1]
        kind = "SkipGroupNorm.vector"
        if rank(skip) == 4:
            nodes.append(turned(skip, TO_LAST))
            kind, skip = "SkipGroupNorm", nodes[-1].outputs[0]
        operands.append(skip)
    shared = parts is not None and len(x.uses()) > 1
    new = call(model, kind, operands, more, 2 if shared else 1)
    result = turned(new.outputs[0], TO_FIRST)
    if add is not None and shared:
        summed = turned(new.outputs[1], TO_FIRST)
        replace(add, [*nodes, new, summed], summed.outputs[0])
        replace(silu, [result], result.outputs[0])
    else:
        replace(silu, [*nodes, new, result], result.outputs[0])
    for value in (nodes[0].outputs[0], *new.outputs):
        value.shape, value.type = permuted(x, TO_LAST), x.type


def _skip(x: ir.Value, add: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What SkipGroupNorm adds to make `x`: a picture, and another of its shape or one number a channel as (batch, channels)."""
    first, second = add.inputs
    if first is None or second is None or x.shape is None:
        return None
    if first.shape == x.shape and second.shape == x.shape:
        return first, second
    for picture, other in ((first, second), (second, first)):
        wide = producer(other, "Unsqueeze")
        vector = None if wide is None else wide.inputs[0]
        whole = picture.shape == x.shape and other.shape is not None and other.shape[2:] == (1, 1)
        if vector is not None and whole and vector.shape is not None and tuple(vector.shape) == tuple(x.shape[:2]):
            return picture, vector
    return None


def fuse_skip_layer_norm(model: ir.Model) -> ir.Model:
    """Add (with the bias of a linear layer before it) and LayerNormalization → SkipLayerNormalization, which gives the sum too."""
    for node in nodes_of(model, "LayerNormalization"):
        x, add = node.inputs[0], producer(node.inputs[0], "Add")
        if x is None or add is None or len(node.inputs) < 3 or rank(x) != 3 or attribute(node, "axis", -1) not in {-1, 2}:
            continue
        if any(value is None or value.shape != x.shape for value in add.inputs):
            continue  # the kernel adds tensors of one shape
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
    """What `add` adds, where a side of it is the sum of a layer and its bias, wanted nowhere else: (layer, bias, other side)."""
    for value, other in (add.inputs, add.inputs[::-1]):
        before = producer(value, "Add")
        if before is None or value is None or other is None or len(value.uses()) != 1 or value.is_graph_output():
            continue
        layer, bias = before.inputs
        if layer is not None and bias is not None and bias.const_value is not None and rank(bias) == 1 and layer.shape == value.shape:
            return layer, bias, other
    return None


def fuse_bias_add(model: ir.Model) -> ir.Model:
    """Add(Add(x, bias), skip) on tokens → BiasAdd, for the channels that its kernel knows."""
    for node in nodes_of(model, "Add"):
        summands, x = _biased(node), node.outputs[0]
        if summands is None or rank(x) != 3 or summands[2].shape != x.shape:
            continue
        layer, bias, skip = summands
        if int(bias.shape[0]) not in _ADDED:  # pyright: ignore[reportOptionalSubscript, reportArgumentType]  # _biased has seen it
            declined(model).append(f"{node.name}: BiasAdd has kernels for {_ADDED} channels, and this has {bias.shape}")
            continue
        new = call(model, "BiasAdd", [layer, bias, skip], {})
        replace(node, [new], new.outputs[0])
    return tidy(model)


def fuse_bias_split_gelu(model: ir.Model) -> ir.Model:
    """Add of a bias, Split into halves, left · Gelu(right) → BiasSplitGelu, for the sizes that its kernel knows."""
    for split in nodes_of(model, "Split"):
        add, product = producer(split.inputs[0], "Add"), _gated(split)
        if add is None or product is None or len(add.outputs[0].uses()) != 1 or rank(add.outputs[0]) != 3:
            continue
        layer, bias = add.inputs
        if layer is None or bias is None or bias.const_value is None or rank(bias) != 1:
            continue
        if bias.const_value.size not in _SPLIT:
            declined(model).append(f"{split.name}: BiasSplitGelu has kernels for {_SPLIT}, and this has {bias.const_value.size}")
            continue
        new = call(model, "BiasSplitGelu", [layer, bias], {})
        replace(product, [new], new.outputs[0])
    return tidy(model)


def _gated(split: ir.Node) -> ir.Node | None:
    """The product of the left half of `split` and the exact GELU of its right half, used nowhere else."""
    if len(split.outputs) != 2 or attribute(split, "axis", 0) not in {-1, 2} or any(len(half.uses()) != 1 for half in split.outputs):
        return None
    product, gelu = (next(iter(half.uses())).node for half in split.outputs)
    if gelu.op_type != "Gelu" or attribute(gelu, "approximate", "none") != "none" or product.op_type != "Mul":
        return None
    return product if set(product.inputs) == {split.outputs[0], gelu.outputs[0]} and len(gelu.outputs[0].uses()) == 1 else None
