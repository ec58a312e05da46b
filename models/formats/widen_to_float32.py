"""A graph in half precision made to compute in float32, with the same weights: what overflows in half does not in single.

Weights stay in 16 bits where they are, and are cast as they are used. What was declared to be float16 (inputs, outputs, constants, the
goals of casts) becomes float32; all else follows, since ONNX infers it. Format: onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from ..errors import BundleError
from .onnx_reader import Graph
from .protobuf import BYTES, VARINT, MalformedError, Walker, encode_field, encode_varint

FLOAT, FLOAT16 = 1, 10
"""Values of TensorProto.DataType."""
_INT = 2
"""Values of AttributeProto.AttributeType."""
_GOALS = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that name the dtype of a node's output."""
_WIDE = "{}/float32"
"""Suffix of an initializer after its cast."""

_Change = Callable[[int, int], bytes]
"""(start, end) of a field's content, or (value, end) of a number → the whole field that takes its place."""


def has_halves(graph: Graph) -> bool:
    """Whether a graph stores or takes 16-bit floats; if not, nothing is to be widened."""
    return "float16" in {one.dtype for many in (graph.initializers, graph.inputs, graph.outputs) for one in many.values()}


def widened(data: bytes, halves: Collection[str]) -> bytes:
    """The ONNX model `data`, whose initializers `halves` are float16, computing in float32; its inputs and outputs are float32 then.

    External data stays where it is.

    Raises:
        BundleError: a constant inside a node is stored in an unusual way.
    """
    try:
        return _Rewriter(data).model(frozenset(halves))
    except (MalformedError, ValueError) as error:
        raise BundleError(f"the graph cannot be made to compute in float32 ({error}): export it again with --precision fp32") from error


class _Rewriter(Walker):
    """One pass over the bytes of a model; what is not named is copied."""

    def changed(self, start: int, end: int, changes: Mapping[int, _Change]) -> bytes:
        """The message in `data[start:end]` with the fields of these numbers made again."""
        pieces: list[bytes] = []
        kept = before = start
        for number, _, a, b in self.fields(start, end):
            if number in changes:
                pieces += [self.data[kept:before], changes[number](a, b)]
                kept = b
            before = b
        return b"".join([*pieces, self.data[kept:end]])

    def model(self, halves: frozenset[str]) -> bytes:
        def function(start: int, end: int) -> bytes:
            return encode_field(25, self.changed(start, end, {7: partial(self.node, frozenset[str](), 7)}))

        return self.changed(0, len(self.data), {7: lambda a, b: encode_field(7, _casts(halves) + self.graph(halves, a, b)), 25: function})

    def graph(self, halves: frozenset[str], start: int, end: int) -> bytes:
        """Shapes and dtypes of intermediate tensors are dropped; ONNX Runtime infers them again."""
        changes: dict[int, _Change] = {number: partial(self.value, number) for number in (11, 12)}
        changes[1] = partial(self.node, halves, 1)
        changes[13] = lambda _start, _end: b""
        return self.changed(start, end, changes)

    def value(self, number: int, start: int, end: int) -> bytes:
        def kind(value: int, _end: int) -> bytes:
            return _number(1, FLOAT if value == FLOAT16 else value)

        def tensor_type(a: int, b: int) -> bytes:
            return encode_field(1, self.changed(a, b, {1: kind}))

        return encode_field(number, self.changed(start, end, {2: lambda a, b: encode_field(2, self.changed(a, b, {1: tensor_type}))}))

    def node(self, halves: frozenset[str], number: int, start: int, end: int) -> bytes:
        def fed(a: int, b: int) -> bytes:
            name = self.text(a, b)
            return encode_field(1, (_WIDE.format(name) if name in halves else name).encode())

        return encode_field(number, self.changed(start, end, {1: fed, 5: self.attribute}))

    def attribute(self, start: int, end: int) -> bytes:
        name = next((self.text(a, b) for number, wire, a, b in self.fields(start, end) if number == 1 and wire == BYTES), "")

        def integer(value: int, _end: int) -> bytes:
            return _number(3, FLOAT if value == FLOAT16 and name in _GOALS else value)

        changes: dict[int, _Change] = {3: integer, 5: partial(self.tensor, 5), 10: partial(self.tensor, 10)}
        return encode_field(5, self.changed(start, end, changes))

    def tensor(self, number: int, start: int, end: int) -> bytes:
        """A constant, with its values in float32."""
        fields = [(one, wire, a, b) for one, wire, a, b in self.fields(start, end)]
        if (2, VARINT, FLOAT16) not in {(one, wire, a) for one, wire, a, _ in fields}:
            return encode_field(number, bytes(self.data[start:end]))
        values = next((np.frombuffer(self.data, "<f2", (b - a) // 2, a) for one, _, a, b in fields if one == 9), None)
        if values is None:
            values = np.array([bits for field in fields if field[0] == 5 for bits in self.bits(*field[1:])], np.uint16).view(np.float16)
        kept = self.changed(start, end, dict.fromkeys((2, 5, 9), lambda _start, _end: b""))
        return encode_field(number, kept + _number(2, FLOAT) + encode_field(9, values.astype("<f4").tobytes()))

    def bits(self, wire: int, start: int, end: int) -> list[int]:
        """Halves as TensorProto.int32_data has them: one, or several packed together."""
        found = [start] if wire == VARINT else list[int]()
        while wire == BYTES and start < end:
            value, start = self.varint(start, end)
            found.append(value)
        return found


def _casts(halves: Collection[str]) -> bytes:
    """Nodes that widen initializers."""
    goal = encode_field(1, b"to") + _number(3, FLOAT) + _number(20, _INT)
    ends = ((name.encode(), _WIDE.format(name).encode()) for name in sorted(halves))
    nodes = (encode_field(1, half) + encode_field(2, wide) + encode_field(4, b"Cast") + encode_field(5, goal) for half, wide in ends)
    return b"".join(encode_field(1, node) for node in nodes)


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3 | VARINT) + encode_varint(value)
