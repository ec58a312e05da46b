"""Linear layers with 4-bit weights: ONNX Runtime's MatMulNBits, which CPU, CUDA and DirectML providers have.

Weights lie in blocks of 32 along the input channels, each with a float scale and a zero point of 4 bit: real = (stored - zero) ×
scale. Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import graph
from .layers import Layer

Array = NDArray[np.float32]
BLOCK = 32
EIGHT_BIT_SUMS = 4
"""ONNX Runtime's name for: activations may go to 8 bit, block by block. Its CPU provider then takes 0.8 of the time, and the demo
model's U-Net loses less than 0.1 dB; other providers ignore it."""
SHRINK = tuple(float(shrink) for shrink in np.linspace(1.0, 0.7, 7))
"""Where clipping is tried, as fractions of a block's range."""


class Blocks(NamedTuple):
    """A weight (in, out) in 4 bit."""

    stored: NDArray[np.uint8]
    """(out, in / 32, 16): two to a byte, the first in the lower half."""
    scales: Array
    """(out, in / 32)."""
    zeros: NDArray[np.uint8]
    """(out, ⌈in / 64⌉): two to a byte likewise."""


def pack(weight: Array) -> Blocks:
    """`weight` (in, out) in 4 bit, each block with the range that leaves the least squared error."""
    rows = np.ascontiguousarray(weight.T).reshape(weight.shape[1], -1, BLOCK)
    low, high = np.minimum(rows.min(axis=2), 0), np.maximum(rows.max(axis=2), 0)
    best = np.full(low.shape, np.inf, np.float32)
    scales, zeros = np.ones(low.shape, np.float32), np.zeros(low.shape, np.float32)
    for shrink in SHRINK:
        scale = np.maximum((high - low) * np.float32(shrink) / 15, np.float32(1e-12))
        zero = np.clip(np.rint(-low * np.float32(shrink) / scale), 0, 15).astype(np.float32)
        error = np.square(_read(_round(rows, scale, zero), scale, zero) - rows).sum(axis=2)
        better = error < best
        best, scales, zeros = np.where(better, error, best), np.where(better, scale, scales), np.where(better, zero, zeros)
    return Blocks(_pairs(_round(rows, scales, zeros)), scales, _pairs(zeros.astype(np.uint8)))


def unpack(blocks: Blocks) -> Array:
    """The weight (in, out) that `blocks` stand for."""
    stored, zeros = _single(blocks.stored), _single(blocks.zeros)[:, : blocks.scales.shape[1]]
    return _read(stored, blocks.scales, zeros.astype(np.float32)).reshape(len(stored), -1).T


def lower(model: ir.Model, layer: Layer, *, on_cpu: bool = True) -> tuple[int, float]:
    """Puts a MatMulNBits, as the CPU likes it best or not, in the place of the MatMul `layer`; gives the bytes of its weights, and
    their SNR in dB.
    """
    assert layer.weight.const_value is not None
    real: Array = layer.weight.const_value.numpy()
    blocks = pack(real)
    name = layer.weight.name or ""
    weights = [
        graph.initializer(model, f"{name}_{suffix}", np.ascontiguousarray(array))
        for suffix, array in (("int4", blocks.stored), ("int4_scale", blocks.scales), ("int4_zero", blocks.zeros))
    ]
    size, width = real.shape
    attributes = {"K": size, "N": width, "bits": 4, "block_size": BLOCK} | ({"accuracy_level": EIGHT_BIT_SUMS} if on_cpu else {})
    node = ir.node("MatMulNBits", [layer.input, *weights], attributes, domain=graph.MICROSOFT, name=layer.node.name)
    graph.replace(layer.node, [node], node.outputs[0])
    noise = float(np.square(real - unpack(blocks), dtype=np.float64).sum())
    power = float(np.square(real, dtype=np.float64).sum())
    return sum(array.nbytes for array in blocks), round(float(10 * np.log10(max(power, 1e-30) / max(noise, 1e-30))), 1)


def _round(rows: Array, scale: Array, zero: Array) -> NDArray[np.uint8]:
    return np.clip(np.rint(rows / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)


def _read(stored: NDArray[np.uint8], scale: Array, zero: Array) -> Array:
    return (stored - zero[..., None]) * scale[..., None]


def _pairs(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two to a byte along the last axis; an odd one has a zero beside it."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    paired: NDArray[np.uint8] = np.asarray(values[..., ::2] | (values[..., 1::2] << 4), np.uint8)
    return paired


def _single(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    parts = np.asarray(np.stack([values & 15, values >> 4], axis=-1), np.uint8)
    return parts.reshape(*values.shape[:-1], -1)
