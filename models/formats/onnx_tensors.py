"""Locations of an ONNX file's tensors: in the file itself, or in external data files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from .protobuf import BYTES, VARINT, MalformedError, Walker

DTYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32), 7: ("int64", 64),
    9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64),
    15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8),
    20: ("float8_e5m2fnuz", 8), 21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1", 4), 24: ("float8_e8m0", 8),
}  # fmt: skip
"""TensorProto.DataType → name and bits of an element; 8 is string."""


class Initializer(NamedTuple):
    """A constant of the graph, and the location of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """In `location`, or in the graph file itself when that is empty; -1 when the bytes are not stored raw."""
    length: int
    location: str
    """File of external data, relative to the graph's folder; not checked yet."""
    span: tuple[int, int] = (0, 0)
    """Start and end of the whole record in the graph file; (0, 0) inside a node."""


_SINGLE = frozenset({2, 3, 8, 9, 12, 14})
"""The fields of TensorProto that are not repeated."""


def enumeration(value: int) -> int:
    """`value`, which other readers cut to 32 bits.

    Raises:
        MalformedError: it would be another number then.
    """
    if value >= 1 << 31:
        raise MalformedError(f"the constant {value} has more than 32 bits")
    return value


class TensorReader(Walker):
    """Reads the heads of tensors, and never their values."""

    def tensor(self, start: int, end: int) -> Initializer:
        name, location, kind, offset, length, external = "", "", 0, -1, 0, False
        shape: list[int] = []
        entries: dict[str, str] = {}
        for number, wire, a, b in self.message(start, end, _SINGLE):
            if number == 1:
                shape.extend(self.dims(wire, a, b))
            elif number == 2 and wire == 0:
                kind = enumeration(a)
            elif number == 8 and wire == 2:
                name = self.text(a, b)
            elif number == 9 and wire == 2:
                offset, length = a, b - a
            elif number == 13 and wire == 2:
                key, value = self.entry(a, b)
                entries[key] = value
            elif number == 14 and wire == 0:
                external = enumeration(a) == 1
        dtype, bits = DTYPES.get(kind, ("string" if kind == 8 else f"type {kind}", 0))
        if external:
            location, offset, length = self.external(name, entries, shape, bits)
        elif offset >= 0 and bits and length != _bytes(shape, bits):
            raise MalformedError(f"tensor {name!r} of shape {shape} needs {_bytes(shape, bits)} bytes, but has {length}")
        return Initializer(name, dtype, tuple(shape), offset, length, location)

    def external(self, name: str, entries: Mapping[str, str], shape: list[int], bits: int) -> tuple[str, int, int]:
        location = entries.get("location", "")
        if not location or not bits:
            raise MalformedError(f"tensor {name!r} has no place or no known type for its external data")
        needed = _bytes(shape, bits)
        offset, length = _number(entries.get("offset", "0")), _number(entries.get("length", str(needed)))
        if length != needed:
            raise MalformedError(f"tensor {name!r} of shape {shape} needs {needed} bytes, but says {length}")
        return location, offset, length

    def dims(self, wire: int, start: int, end: int) -> list[int]:
        sizes = [start] if wire == VARINT else list[int]()
        if wire == BYTES:
            while start < end and len(sizes) <= 64:
                size, start = self.varint(start, end)
                sizes.append(size)
        if len(sizes) > 64 or any(size >= 1 << 48 for size in sizes):
            raise MalformedError(f"a tensor of impossible shape at byte {start}")
        return sizes

    def entry(self, start: int, end: int) -> tuple[str, str]:
        texts = {number: self.text(a, b) for number, wire, a, b in self.message(start, end, frozenset({1, 2})) if wire == 2}
        return texts.get(1, ""), texts.get(2, "")


def _bytes(shape: list[int], bits: int) -> int:
    """The size of a tensor whose elements have that many bits."""
    return (math.prod(shape) * bits + 7) // 8


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise MalformedError(f"{text[:40]!r} is not the place of external data")
    return int(text)
