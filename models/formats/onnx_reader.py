"""A small, bounded reader of ONNX files, used before ONNX Runtime sees them.

It walks the mapped file and skips over tensor payloads, so its time depends on the number of nodes and not on the
size of the weights. Nothing is allocated for what a file merely claims to hold.
Format: https://onnx.ai/onnx/repo-docs/IR.html and onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BundleError
from ..manifest import Tensor
from .file_kind import looks_like
from .onnx_tensors import DTYPES, Initializer, TensorReader, enumeration
from .protobuf import MalformedError, RefusedError
from .small_file import open_regular

MAX_ENTRIES = 200_000
"""The largest graphs of the trade have a tenth."""


@dataclass(frozen=True)
class Graph:
    """Facts read from an ONNX file."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    opsets: Mapping[str, int]
    operators: frozenset[tuple[str, str]]
    """(domain, operator) of every node, also in functions; the standard domain is ''."""
    functions: frozenset[tuple[str, str]]
    """(domain, name) of the functions that the file itself defines."""
    initializers: Mapping[str, Initializer]
    """Inputs of the main graph by name."""
    hidden: tuple[Initializer, ...] = ()
    """External tensors in attributes and functions."""
    entries: int = 0
    """Nodes and initializers, those of functions too."""


def read(path: Path) -> Graph:
    """Read the ONNX file `path`.

    Raises:
        BundleError: missing, not a regular file, not an ONNX model (with what it looks like), larger than any model, or with control
            flow, whose work has no bounds.
    """
    head = b""
    try:
        with open_regular(path, "an ONNX model") as file:
            head = file.read(512)
            if not head:
                raise BundleError(f"{path}: not an ONNX model (it is empty): download or export it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).model()
    except RefusedError as error:
        raise BundleError(f"{path}: {error}; export the model again with `diffusette export`") from error
    except MalformedError as error:
        raise BundleError(f"{path}: not an ONNX model (looks like {looks_like(head)}; {error}): download or export it again") from error


@dataclass
class _Found:
    """Facts gathered during the walk."""

    operators: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    functions: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    entries: int = 0
    hidden: list[Initializer] = field(default_factory=list[Initializer])
    harmless: set[bytes] = field(default_factory=set[bytes])
    """Attributes already seen to hold neither tensor nor graph: the same few come again and again."""


class _Reader(TensorReader):
    """One walk over one file."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        super().__init__(data)
        self.found = _Found()

    def model(self) -> Graph:
        opsets: dict[str, int] = {}
        graph: tuple[int, int] | None = None
        version = 0
        for number, wire, start, end in self.message(0, len(self.data), _SINGLE["model"]):
            if number == 1 and wire == 0:
                version = start
            elif number == 7 and wire == 2:
                graph = (start, end)
            elif number == 8 and wire == 2:
                domain, opset = self.opset(start, end)
                opsets[domain] = opset
            elif number == 20:
                raise RefusedError("it has steps of training, which a model that is run does not need")
            elif number == 25 and wire == 2:
                self.function(start, end)
        if graph is None or not 3 <= version < 1 << 16 or not opsets:
            raise MalformedError("it has no version, no operator set or no graph")
        inputs, outputs, initializers = self.graph(*graph)
        found = self.found
        return Graph(
            inputs={name: tensor for name, tensor in inputs.items() if name not in initializers},
            outputs=outputs,
            opsets=opsets,
            operators=frozenset(found.operators),
            functions=frozenset(found.functions),
            initializers=initializers,
            hidden=tuple(found.hidden),
            entries=found.entries,
        )

    def opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, a, b in self.message(start, end, _SINGLE["opset"]):
            if number == 1 and wire == 2:
                domain = _standard(self.text(a, b))
            elif number == 2 and wire == 0:
                version = a
        return domain, version

    def function(self, start: int, end: int) -> None:
        name = domain = ""
        for number, wire, a, b in self.message(start, end, _SINGLE["function"]):
            if wire != 2:
                continue
            if number == 1:
                name = self.text(a, b)
            elif number == 10:
                domain = _standard(self.text(a, b))
            elif number == 7:
                self.node(a, b)
            elif number == 11:
                self.attribute(a, b)
        self.found.functions.add((domain, name))

    def graph(self, start: int, end: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Initializer]]:
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        initializers: dict[str, Initializer] = {}
        before = start
        for number, wire, a, b in self.fields(start, end):
            if wire == 2:
                if number == 1:
                    self.node(a, b)
                elif number == 5:
                    self.count()
                    tensor = self.tensor(a, b)._replace(span=(before, b))
                    if tensor.name in initializers:
                        raise MalformedError(f"two initializers are called {tensor.name!r}")
                    initializers[tensor.name] = tensor
                elif number == 15:
                    raise MalformedError("it has sparse initializers, which no exporter of diffusion models writes")
                elif number in {11, 12}:
                    name, declared = self.value(a, b)
                    (inputs if number == 11 else outputs)[name] = declared
            before = b
        return inputs, outputs, initializers

    def count(self) -> None:
        self.found.entries += 1
        if self.found.entries > MAX_ENTRIES:
            raise RefusedError(f"it has more than {MAX_ENTRIES:,} nodes and weights")

    def node(self, start: int, end: int) -> None:
        operator = domain = ""
        harmless = self.found.harmless
        self.count()
        for number, wire, a, b in self.message(start, end, _SINGLE["node"]):
            if wire != 2 or number < 4:
                continue
            if number == 4:
                operator = self.text(a, b)
            elif number == 7:
                domain = _standard(self.text(a, b))
            elif number == 5 and (b - a > 96 or self.data[a:b] not in harmless):
                self.attribute(a, b)
        self.found.operators.add((domain, operator))

    def attribute(self, start: int, end: int) -> None:
        plain = True
        for number, wire, a, b in self.message(start, end, _SINGLE["attribute"]):
            if wire != 2:
                continue
            if number in {5, 10}:
                plain = False
                tensor = self.tensor(a, b)
                if tensor.location:
                    self.found.hidden.append(tensor)
            elif number in {6, 11}:
                raise RefusedError("it has control flow (If, Loop or Scan), which can run for ever")
            elif number in {22, 23}:
                raise MalformedError("it has a sparse constant, which no exporter of diffusion models writes")
        if plain and end - start <= 96:
            self.found.harmless.add(bytes(self.data[start:end]))

    def value(self, start: int, end: int) -> tuple[str, Tensor]:
        name, dtype = "", ""
        shape: list[int | str] = []
        for number, wire, a, b in self.message(start, end, _SINGLE["value"]):
            if number == 1 and wire == 2:
                name = self.text(a, b)
            elif number == 2 and wire == 2:
                for kind, inner, c, d in self.message(a, b, _SINGLE["type"]):
                    if kind == 1 and inner == 2:
                        dtype, shape = self.tensor_type(c, d)
        if not dtype:
            raise RefusedError(f"its input or output {name!r} is not a tensor")
        return name, Tensor(dtype, tuple(f"{name}_{axis}" if size == "" else size for axis, size in enumerate(shape)))

    def tensor_type(self, start: int, end: int) -> tuple[str, list[int | str]]:
        dtype = "none"
        shape: list[int | str] = []
        for number, wire, a, b in self.message(start, end, _SINGLE["tensor_type"]):
            if number == 1 and wire == 0:
                dtype = DTYPES.get(enumeration(a), ("string", 0))[0]
            elif number == 2 and wire == 2:
                shape = [self.dimension(c, d) for kind, _, c, d in self.fields(a, b) if kind == 1]
        return dtype, shape

    def dimension(self, start: int, end: int) -> int | str:
        for number, wire, a, b in self.message(start, end, _SINGLE["dimension"]):
            if number == 1 and wire == 0:
                return a
            if number == 2 and wire == 2:
                return self.text(a, b)
        return ""


_SINGLE = {
    "model": frozenset({1, 2, 3, 4, 5, 6, 7}),
    "opset": frozenset({1, 2}),
    "function": frozenset({1, 8, 10, 13}),
    "node": frozenset({3, 4, 6, 7, 8}),
    "attribute": frozenset({1, 2, 3, 4, 5, 6, 13, 14, 20, 21, 22}),
    "value": frozenset({1, 2, 3}),
    "type": frozenset({1, 4, 5, 6, 8, 9}),
    "tensor_type": frozenset({1, 2}),
    "dimension": frozenset({1, 2, 3}),
}
"""The fields of each message that are not repeated."""


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
