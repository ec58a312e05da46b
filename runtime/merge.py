"""Weights of a graph with something added to them: what LoRAs need to know of how a bundle stores a layer.

The contract with export. A layer that a state dict calls `NAME` is stored in one of three forms:

| initializer | dtype | shape |
|---|---|---|
| `NAME.weight` | float32 or float16 | Conv: (out, in, height, width); Linear: (in, out) |
| `NAME.weight_quantized` | int8 | likewise |
| `NAME.weight_scale` | float32 | (out,): real = quantized × scale |
| `NAME.weight_int4` | uint8 | (out, in / 32, 16), two weights to a byte, with `NAME.weight_int4_scale` (out, in / 32) |

The last cannot be added to: its steps are larger than what a LoRA changes, which rounding would take away again.

A Linear's weight is transposed, ready for MatMul; so is that of a 1×1 Conv that was made one. Token and position embeddings
are (rows, width) and no layers here. Beside these there may be

| initializer | dtype | shape | |
|---|---|---|---|
| `NAME.bias_quantized` | int32 | (out,) | of a Conv: in steps of the input's scale × `NAME.weight_scale` |
| `NAME.bias_scale` | float32 | (out,) | these steps, where the graph is written as QDQ pairs |
| `NAME.output_factors` | float32 | (out,) | the stored weight is the model's with its output channels multiplied by these |
| `NAME.input_factors` | float32 | (in,) | likewise its input channels |

The last two (SmoothQuant's) are read here and by no node. Scales of activations stay as they are: they were calibrated on the
model without LoRAs, whose activations a LoRA of usual weight hardly widens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError, RequestError
from ..models.onnx_tensors import Initializer
from ..models.onnx_weights import values

Array = NDArray[Any]
Real = NDArray[np.float32]
Initializers = Mapping[str, Initializer]
_FORMS = (".weight", ".weight_quantized")
_FOUR_BITS = ".weight_int4"
_REAL = frozenset({"float32", "float16"})


def modules(initializers: Initializers) -> set[str]:
    """The layers whose weights can be added to."""
    found = {
        name.removesuffix(form)
        for name, tensor in initializers.items()
        for form in _FORMS
        if name.endswith(form) and len(tensor.shape) in {2, 4} and tensor.dtype in ({"int8"} if form == _FORMS[1] else _REAL)
    }
    found |= {name.removesuffix(_FOUR_BITS) for name in initializers if name.endswith(_FOUR_BITS)}
    return {name for name in found if not name.endswith("_embedding")}


def shape_of(initializers: Initializers, module: str) -> tuple[int, ...]:
    """The shape of the weight of `module` as torch has it: (out, in) or (out, in, height, width).

    Raises:
        RequestError: it is stored in 4 bit.
    """
    if module + _FOUR_BITS in initializers:
        raise RequestError(
            f"{module} is stored in 4 bit, whose steps are larger than what a LoRA changes: "
            "merge the LoRA when exporting (`diffusette export --lora`), or use a bundle in int8"
        )
    shape = weight_of(initializers, module).shape
    return shape[::-1] if len(shape) == 2 else shape


def added(graph: Path, initializers: Initializers, module: str, delta: Real) -> dict[str, Array]:
    """The initializers, by name, that make the weight of `module` in the ONNX file `graph` larger by `delta`.

    `delta` has `shape_of`'s shape. The sum is made in float32; a layer in 8 bit gets new scales, one an output channel, where
    the old ones no longer reach.

    Raises:
        RequestError: the sum is too large for the weight's dtype, or not finite.
    """
    weight = weight_of(initializers, module)
    delta = _factored(graph, initializers, module, delta)
    delta = delta.T if delta.ndim == 2 else delta
    stored = values(graph, weight)
    if weight.dtype != "int8":
        with np.errstate(over="ignore"):  # told below
            total = (stored.astype(np.float32) + delta).astype(stored.dtype)
        _need_finite(total, module)
        return {weight.name: total}
    axis = 1 if stored.ndim == 2 else 0
    scale = values(graph, initializers[f"{module}.weight_scale"])
    across = [1] * stored.ndim
    across[axis] = -1
    real = stored * scale.reshape(across) + delta
    _need_finite(real, module)
    quantized, fitted = quantized_again(real, axis, scale)
    ratio = fitted.astype(np.float64) / scale
    return {weight.name: quantized, f"{module}.weight_scale": fitted, **_bias(graph, initializers, module, ratio)}


def quantized_again(real: Real, axis: int, scale: Real) -> tuple[NDArray[np.int8], Real]:
    """`real` in signed 8 bit, with a scale for each index of `axis`: that of `scale` wherever it reaches, so that what it
    already held exactly stays so; else one that takes in the largest number.
    """
    others = tuple(other for other in range(real.ndim) if other != axis)
    peaks = np.abs(real).max(axis=others)
    fitted = np.where(peaks > 127.5 * scale, peaks / np.float32(127), scale).astype(np.float32)
    across = [1] * real.ndim
    across[axis] = -1
    return np.clip(np.rint(real / fitted.reshape(across)), -127, 127).astype(np.int8), fitted


def rows_replaced(graph: Path, initializers: Initializers, module: str, rows: Mapping[int, Real]) -> dict[str, Array]:
    """The initializers that put the vectors of `rows` (width,) into these rows of the embedding `module` of the file `graph`.

    In 8 bit an embedding has a scale a row, which is stored as a column, `NAME.weight_scale_column` (rows, 1).
    """
    weight = weight_of(initializers, module)
    changed: Array = np.array(values(graph, weight))
    places = list(rows)
    vectors = np.stack([rows[place] for place in places])
    if weight.dtype != "int8":
        with np.errstate(over="ignore"):
            changed[places] = vectors.astype(changed.dtype)
        _need_finite(changed[places], module)
        return {weight.name: changed}
    name = f"{module}.weight_scale_column"
    scales: Array = np.array(values(graph, initializers[name]))
    peaks = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12) / np.float32(127)
    changed[places], scales[places] = np.rint(vectors / peaks), peaks
    return {weight.name: changed, name: scales}


def embedding_shape(initializers: Initializers, module: str) -> tuple[int, ...]:
    """(rows, width) of the embedding `module`."""
    return weight_of(initializers, module).shape


def weight_of(initializers: Initializers, module: str) -> Initializer:
    """The stored weight of `module`.

    Raises:
        BundleError: there is none under that name.
    """
    for form in _FORMS:
        if module + form in initializers:
            return initializers[module + form]
    raise BundleError(f"the graph has no weight of {module!r} under that name: expected a bundle made by `diffusette export`")


def _factored(graph: Path, initializers: Initializers, module: str, delta: Real) -> Real:
    for name, axis in ((f"{module}.output_factors", 0), (f"{module}.input_factors", 1)):
        if name in initializers:
            across = [1] * delta.ndim
            across[axis] = -1
            delta = delta * values(graph, initializers[name]).reshape(across)
    return delta


def _bias(graph: Path, initializers: Initializers, module: str, ratio: NDArray[np.float64]) -> dict[str, Array]:
    """The bias of a Conv counts in steps of the weight's scale, which became `ratio` times larger."""
    name = f"{module}.bias_quantized"
    if name not in initializers:
        return {}
    steps = np.rint(values(graph, initializers[name]) / ratio)
    changed: dict[str, Array] = {name: np.clip(steps, -(2**31) + 1, 2**31 - 1).astype(np.int32)}
    if f"{module}.bias_scale" in initializers:
        scale = values(graph, initializers[f"{module}.bias_scale"])
        changed[f"{module}.bias_scale"] = (scale * ratio).astype(np.float32)
    return changed


def _need_finite(array: Array, module: str) -> None:
    if not np.isfinite(array).all():
        raise RequestError(f"{module}: with the LoRAs added, weights are beyond {array.dtype}: use a smaller weight")


def total(deltas: Iterable[tuple[float, Real]]) -> Real:
    """The weighted sum of `deltas`, at least one, in float32."""
    (factor, first), *others = deltas
    whole = first * np.float32(factor)
    for factor, delta in others:
        whole += delta * np.float32(factor)
    return whole
