"""Add LoRA changes to the weights of a graph.

This is the contract with export about stored weights. A layer called `NAME` in the state dict is stored in one of three forms:

| initializer | dtype | shape |
|---|---|---|
| `NAME.weight` | float32 or float16 | Conv: (out, in, height, width); Linear: (in, out) |
| `NAME.weight_quantized` | int8 | the same |
| `NAME.weight_scale` | float32 | (out,): real = quantized × scale |
| `NAME.weight_int4` | uint8 | (out, in / 32, 16), two weights per byte, with `NAME.weight_int4_scale` (out, in / 32) |

int4 weights cannot be changed: their steps are larger than the change of a LoRA, which rounding would remove.

The weight of a Linear is transposed for MatMul, and so is that of a 1×1 Conv that was converted to a Linear. Token and position embeddings
are (rows, width) and do not count as layers. Optional initializers are

| initializer | dtype | shape | |
|---|---|---|---|
| `NAME.bias_quantized` | int32 | (out,) | the bias of a Conv, in steps of the input's scale × `NAME.weight_scale` |
| `NAME.bias_scale` | float32 | (out,) | these steps, if the graph has QDQ pairs |
| `NAME.output_factors` | float32 | (out,) | factors that multiply the output channels of the stored weight |
| `NAME.input_factors` | float32 | (in,) | factors that multiply the input channels of the stored weight |

No node uses the last two (from SmoothQuant); they are only read here. Activation scales stay unchanged: they were calibrated without
LoRAs, and a LoRA of usual weight hardly widens the range of activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.errors import BundleError, RequestError
from ...models.formats.onnx_replace_weights import values
from ...models.formats.onnx_tensors import Initializer

Array = NDArray[Any]
Real = NDArray[np.float32]
Initializers = Mapping[str, Initializer]
_FORMS = (".weight", ".weight_quantized")
_FOUR_BITS = ".weight_int4"
_REAL = frozenset({"float32", "float16"})


def modules(initializers: Initializers) -> set[str]:
    """Return the layers that a LoRA may name, including those in int4."""
    found = {
        name.removesuffix(form)
        for name, tensor in initializers.items()
        for form in _FORMS
        if name.endswith(form) and len(tensor.shape) in {2, 4} and tensor.dtype in ({"int8"} if form == _FORMS[1] else _REAL)
    }
    found |= {name.removesuffix(_FOUR_BITS) for name in initializers if name.endswith(_FOUR_BITS)}
    return {name for name in found if not name.endswith("_embedding")}


def shape_of(initializers: Initializers, module: str) -> tuple[int, ...]:
    """Return the shape of the weight of `module` as in torch: (out, in) or (out, in, height, width).

    Raises:
        RequestError: the weight is stored in int4.
    """
    if module + _FOUR_BITS in initializers:
        raise RequestError(
            f"{module} is stored in int4, which is too coarse for the changes of a LoRA; "
            "merge the LoRA when exporting (`diffusette export --lora`), or use a bundle in int8"
        )
    shape = weight_of(initializers, module).shape
    return shape[::-1] if len(shape) == 2 else shape


def added(graph: Path, initializers: Initializers, module: str, delta: Real) -> dict[str, Array]:
    """Return the initializers, by name, that add `delta` to the weight of `module` in the ONNX file `graph`.

    `delta` has the shape from `shape_of`. The sum is computed in float32. An int8 layer gets a new scale for each output channel that
    exceeds the range of the old one.

    Raises:
        RequestError: the sum is too large for the weight's dtype, or not finite.
    """
    weight = weight_of(initializers, module)
    delta = _factored(graph, initializers, module, delta)
    delta = delta.T if delta.ndim == 2 else delta
    stored = values(graph, weight)
    if weight.dtype != "int8":
        with np.errstate(over="ignore"):  # reported below
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


def real(graph: Path, initializers: Initializers, module: str) -> Real:
    """Return the weight of `module` as in torch, (out, in) or (out, in, height, width), in float32."""
    weight = weight_of(initializers, module)
    stored = values(graph, weight).astype(np.float32)
    if weight.dtype == "int8":
        across = [1] * stored.ndim
        across[1 if stored.ndim == 2 else 0] = -1
        stored = stored * values(graph, initializers[f"{module}.weight_scale"]).reshape(across)
    return _factored(graph, initializers, module, stored.T if stored.ndim == 2 else stored, back=True)


def quantized_again(real: Real, axis: int, scale: Real) -> tuple[NDArray[np.int8], Real]:
    """Quantize `real` to int8, with one scale for each index of `axis`.

    An old scale is kept if it covers the new values, so that exactly representable values stay exact; otherwise the scale is fitted to the
    largest value.
    """
    others = tuple(other for other in range(real.ndim) if other != axis)
    peaks = np.abs(real).max(axis=others)
    fitted = np.where(peaks > 127.5 * scale, peaks / np.float32(127), scale).astype(np.float32)
    across = [1] * real.ndim
    across[axis] = -1
    return np.clip(np.rint(real / fitted.reshape(across)), -127, 127).astype(np.int8), fitted


def rows_replaced(graph: Path, initializers: Initializers, module: str, rows: Mapping[int, Real]) -> dict[str, Array]:
    """Return the initializers that replace rows of the embedding `module` in the file `graph` with the vectors `rows`, (width,) each.

    An int8 embedding has one scale per row, stored as a column: `NAME.weight_scale_column` (rows, 1).
    """
    weight = weight_of(initializers, module)
    changed: Array = np.array(values(graph, weight))
    indices = list(rows)
    vectors = np.stack([rows[index] for index in indices])
    if weight.dtype != "int8":
        with np.errstate(over="ignore"):
            changed[indices] = vectors.astype(changed.dtype)
        _need_finite(changed[indices], module)
        return {weight.name: changed}
    name = f"{module}.weight_scale_column"
    scales: Array = np.array(values(graph, initializers[name]))
    peaks = np.maximum(np.abs(vectors).max(axis=1, keepdims=True), 1e-12) / np.float32(127)
    changed[indices], scales[indices] = np.rint(vectors / peaks), peaks
    return {weight.name: changed, name: scales}


def embedding_shape(initializers: Initializers, module: str) -> tuple[int, ...]:
    """Return (rows, width) of the embedding `module`."""
    return weight_of(initializers, module).shape


def weight_of(initializers: Initializers, module: str) -> Initializer:
    """Return the stored weight of `module`.

    Raises:
        BundleError: the graph has no weight of that name.
    """
    for form in _FORMS:
        if module + form in initializers:
            return initializers[module + form]
    raise BundleError(f"the graph has no weight named {module!r}; expected a bundle made by `diffusette export`")


def _factored(graph: Path, initializers: Initializers, module: str, delta: Real, *, back: bool = False) -> Real:
    """Scale `delta` like the channels of the stored weight, or with `back` the reverse."""
    for name, axis in ((f"{module}.output_factors", 0), (f"{module}.input_factors", 1)):
        if name in initializers:
            across = [1] * delta.ndim
            across[axis] = -1
            factors = values(graph, initializers[name]).reshape(across)
            delta = (delta / factors if back else delta * factors).astype(np.float32)
    return delta


def _bias(graph: Path, initializers: Initializers, module: str, ratio: NDArray[np.float64]) -> dict[str, Array]:
    """Rescale the bias of a Conv, stored in steps of the weight's scale, which became `ratio` times larger."""
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
        raise RequestError(f"{module}: the weights with LoRAs or embeddings exceed {array.dtype}; use a smaller LoRA weight")


def total(deltas: Iterable[tuple[float, Real]]) -> Real:
    """Return the weighted sum of one or more `deltas`, in float32."""
    (factor, first), *others = deltas
    whole = first * np.float32(factor)
    for factor, delta in others:
        whole += delta * np.float32(factor)
    return whole
