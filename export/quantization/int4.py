"""Linear layers with int4 weights: ONNX Runtime's MatMulNBits, which the CPU, CUDA and DirectML providers support.

Weights form blocks of 32 along the input channels, each with a float scale and an int4 zero point: real = (stored - zero) × scale.
Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..graphs import edit
from .layers import Layer

Array = NDArray[np.float32]
BLOCK = 32
INT8_ACCURACY = 4
"""Value of `accuracy_level` that lets ONNX Runtime round activations to int8, block by block. Its CPU provider then takes 0.8 of the time,
and the demo model's U-Net loses less than 0.1 dB; other providers ignore it."""
SHRINK = tuple(float(shrink) for shrink in np.linspace(1.0, 0.7, 7))
"""Clipping candidates, as fractions of a block's range."""


class Blocks(NamedTuple):
    """A weight (in, out) in int4."""

    stored: NDArray[np.uint8]
    """(out, in / 32, 16): two values per byte, the first in the lower four bits."""
    scales: Array
    """(out, in / 32)."""
    zeros: NDArray[np.uint8]
    """(out, ⌈in / 64⌉): also two values per byte."""


def pack(weight: Array) -> Blocks:
    """Round `weight` (in, out) to int4; each block gets the range with the least squared error."""
    groups = np.ascontiguousarray(weight.T).reshape(weight.shape[1], -1, BLOCK)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones(low.shape, np.float32), np.zeros(low.shape, np.float32)
    for shrink in SHRINK:
        scale = np.maximum((high - low) * np.float32(shrink) / 15, np.float32(1e-12))
        zero = np.clip(np.rint(-low * np.float32(shrink) / scale), 0, 15).astype(np.float32)
        error = np.square(_dequantize(_quantize(groups, scale, zero), scale, zero) - groups).sum(axis=2)
        better = error < best
        best, scales, zeros = np.where(better, error, best), np.where(better, scale, scales), np.where(better, zero, zeros)
    return Blocks(_join_nibbles(_quantize(groups, scales, zeros)), scales, _join_nibbles(zeros.astype(np.uint8)))


def unpack(blocks: Blocks) -> Array:
    """Return the weight (in, out) that `blocks` represent."""
    stored, zeros = _split_nibbles(blocks.stored), _split_nibbles(blocks.zeros)[:, : blocks.scales.shape[1]]
    return _dequantize(stored, blocks.scales, zeros.astype(np.float32)).reshape(len(stored), -1).T


def lower(model: ir.Model, layer: Layer, *, on_cpu: bool = True) -> tuple[int, float]:
    """Replace the MatMul `layer` with a MatMulNBits; return the bytes of its weights and their SNR in dB.

    `on_cpu` lets the CPU provider round activations.
    """
    assert layer.weight.const_value is not None
    real: Array = layer.weight.const_value.numpy()
    blocks = pack(real)
    name = layer.weight.name or ""
    weights = [
        edit.initializer(model, f"{name}_{suffix}", np.ascontiguousarray(array))
        for suffix, array in (("int4", blocks.stored), ("int4_scale", blocks.scales), ("int4_zero", blocks.zeros))
    ]
    inputs, outputs = real.shape
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": BLOCK} | ({"accuracy_level": INT8_ACCURACY} if on_cpu else {})
    node = ir.node("MatMulNBits", [layer.input, *weights], attributes, domain=edit.MICROSOFT, name=layer.node.name)
    edit.replace(layer.node, [node], node.outputs[0])
    noise = float(np.square(real - unpack(blocks), dtype=np.float64).sum())
    power = float(np.square(real, dtype=np.float64).sum())
    return sum(array.nbytes for array in blocks), round(float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30))), 1)


def _quantize(groups: Array, scale: Array, zero: Array) -> NDArray[np.uint8]:
    return np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)


def _dequantize(stored: NDArray[np.uint8], scale: Array, zero: Array) -> Array:
    return (stored - zero[..., None]) * scale[..., None]


def _join_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack two values per byte along the last axis; an odd count is padded with zero."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    joined: NDArray[np.uint8] = np.asarray(values[..., ::2] | (values[..., 1::2] << 4), np.uint8)
    return joined


def _split_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    nibbles = np.asarray(np.stack([values & 15, values >> 4], axis=-1), np.uint8)
    return nibbles.reshape(*values.shape[:-1], -1)
