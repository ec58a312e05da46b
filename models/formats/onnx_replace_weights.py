"""Values of the initializers of an ONNX file: read one by one, or replaced in a copy of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .onnx_reader import read
from .onnx_tensors import DTYPES, Initializer
from .protobuf import Walker, encode_field, encode_varint


def values(path: Path, initializer: Initializer) -> NDArray[Any]:
    """The values of `initializer` of the ONNX file `path` (an opened bundle's, whose paths and sizes are good).

    A read-only view of the mapped file. bfloat16 comes as uint16 bits, int8 floats as uint8.

    Raises:
        BundleError: a dtype that NumPy has not (4-bit integers, strings), or values that are not stored as raw bytes.
    """
    name = {"bfloat16": "uint16"}.get(initializer.dtype, "uint8" if initializer.dtype.startswith("float8") else initializer.dtype)
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise BundleError(f"{path}: initializer {initializer.name!r} is {initializer.dtype}, which NumPy cannot hold") from None
    if initializer.offset < 0:
        raise BundleError(f"{path}: the values of initializer {initializer.name!r} are not stored as raw bytes: export the model again")
    file = path.parent / initializer.location if initializer.location else path
    if 0 in initializer.shape:
        return np.empty(initializer.shape, dtype)
    return np.memmap(file, dtype, "r", initializer.offset, initializer.shape)


def replaced(path: Path, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of the ONNX file `path` with the initializers in `tensors` holding these values instead; shapes may differ.

    Raises:
        BundleError: an initializer is not there, or has a dtype that NumPy and ONNX do not share.
    """
    initializers = read(path).initializers
    missing = tensors.keys() - initializers.keys()
    if missing:
        raise BundleError(f"{path}: has no initializer {min(missing)!r}: the adapter was made for another model")
    data = path.read_bytes()
    start, end = next((a, b) for number, wire, a, b in Walker(data).fields(0, len(data)) if number == 7 and wire == 2)
    pieces: list[bytes] = []
    at = start
    for name in sorted(tensors, key=lambda name: initializers[name].span):
        first, last = initializers[name].span
        pieces += [data[at:first], encode_field(5, _encoded(name, tensors[name]))]
        at = last
    body = b"".join([*pieces, data[at:end]])
    header = 1 + len(encode_varint(end - start))
    return b"".join([data[: start - header], encode_field(7, body), data[end:]])


def _encoded(name: str, array: NDArray[Any]) -> bytes:
    kind = next((number for number, (dtype, _) in DTYPES.items() if dtype == array.dtype.name), None)
    if kind is None:
        raise BundleError(f"initializer {name!r}: no ONNX dtype is called {array.dtype}: give float32, float16 or an integer")
    dims = b"".join(b"\x08" + encode_varint(size) for size in array.shape)
    return dims + b"\x10" + encode_varint(kind) + encode_field(8, name.encode()) + encode_field(9, np.asarray(array, order="C").tobytes())
