"""Around a fault of WebGPU's convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs.edit import attribute, change_weight, dims, integers, nodes_of, set_float


def pad_multiples_of_three(model: ir.Model) -> ir.Model:
    """Give convolutions with 6, 9, 15, 18, … input channels zeros up to a multiple of 4, such as the 9 of an inpainting U-Net.

    WebGPU (onnxruntime-ep-webgpu 0.4.0) computes something else for multiples of 3 that are none of 4; 3 itself is right, and so are 1×1
    kernels. tests/webgpu measures it.
    """
    for conv in nodes_of(model, "Conv"):
        x, weight = conv.inputs[:2]
        if x is None or weight is None or weight.const_value is None or attribute(conv, "group", 1) != 1:
            continue
        made, channels, *kernel = dims(weight.const_value)
        if channels == 3 or channels % 3 or not channels % 4 or max(kernel) == 1 or len(weight.uses()) > 1:
            continue
        missing = -channels % 4
        pad = ir.node("Pad", [x, integers(model, 0, 0, 0, 0, 0, missing, 0, 0)])
        set_float(pad.outputs[0], None if x.shape is None else [x.shape[0], channels + missing, *x.shape[2:]])
        change_weight(weight, (made, channels + missing, *kernel), partial(_with_zeros, missing))
        model.graph.insert_before(conv, pad)
        conv.replace_input_with(0, pad.outputs[0])
    return model


def _with_zeros(missing: int, weight: NDArray[Any]) -> NDArray[Any]:
    return np.pad(weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
