"""Reads what has to be known of an ONNX file before anything is made of it: a small, bounded reader of protocol buffers.

It walks the mapped file and skips over tensor payloads, so its time depends on the number of nodes and not on the
size of the weights. Nothing is allocated for what a file merely claims to hold.
Format: https://onnx.ai/onnx/repo-docs/IR.html and onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BundleError
from .file_kind import looks_like
from .manifest import Tensor
from .onnx_tensors import DTYPES, Initializer, TensorReader
from .protobuf import MalformedError

MAX_DEPTH = 16
"""Graphs within graphs (the branches of If, the body of Loop)."""


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says about itself."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    opsets: Mapping[str, int]
    operators: frozenset[tuple[str, str]]
    """(domain, operator) of every node, at any depth and in functions; the standard domain is ''."""
    functions: frozenset[tuple[str, str]]
    """(domain, name) of the functions that the file itself defines."""
    initializers: Mapping[str, Initializer]
    """Of the main graph, by name."""
    hidden: tuple[Initializer, ...] = ()
    """External tensors elsewhere: in attributes, branches and functions."""


def read(path: Path) -> Graph:
    """Read the ONNX file `path`.

    Raises:
        BundleError: missing, not a regular file, not an ONNX model (with what it looks like), or larger than any model.
    """
    head = b""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise BundleError(f"{path}: not a regular file; expected an ONNX model")
        with path.open("rb") as file:
            head = file.read(512)
            if not head:
                raise BundleError(f"{path}: not an ONNX model (it is empty): download or export it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).model()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); expected an ONNX model") from error
    except MalformedError as error:
        raise BundleError(f"{path}: not an ONNX model (looks like {looks_like(head)}; {error}): download or export it again") from error


@dataclass
class _Found:
    """What the walk has gathered."""

    operators: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    functions: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
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
        for number, wire, start, end in self.fields(0, len(self.data)):
            if number == 1 and wire == 0:
                version = start
            elif number == 7 and wire == 2:
                if graph is not None:
                    raise MalformedError("it has two graphs")
                graph = (start, end)
            elif number == 8 and wire == 2:
                domain, opset = self.opset(start, end)
                opsets[domain] = opset
            elif number == 25 and wire == 2:
                self.function(start, end)
        if graph is None or not 3 <= version < 1 << 16 or not opsets:
            raise MalformedError("it has no version, no operator set or no graph")
        inputs, outputs, initializers = self.graph(*graph, 0)
        found = self.found
        return Graph(
            inputs={name: tensor for name, tensor in inputs.items() if name not in initializers},
            outputs=outputs,
            opsets=opsets,
            operators=frozenset(found.operators),
            functions=frozenset(found.functions),
            initializers=initializers,
            hidden=tuple(found.hidden),
        )

    def opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, a, b in self.fields(start, end):
            if number == 1 and wire == 2:
                domain = _standard(self.text(a, b))
            elif number == 2 and wire == 0:
                version = a
        return domain, version

    def function(self, start: int, end: int) -> None:
        name = domain = ""
        for number, wire, a, b in self.fields(start, end):
            if wire != 2:
                continue
            if number == 1:
                name = self.text(a, b)
            elif number == 10:
                domain = _standard(self.text(a, b))
            elif number == 7:
                self.node(a, b, 1)
            elif number == 11:
                self.attribute(a, b, 1)
        self.found.functions.add((domain, name))

    def graph(self, start: int, end: int, depth: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Initializer]]:
        if depth > MAX_DEPTH:
            raise MalformedError(f"more than {MAX_DEPTH} graphs within one another")
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        initializers: dict[str, Initializer] = {}
        before = start
        for number, wire, a, b in self.fields(start, end):
            if wire == 2:
                if number == 1:
                    self.node(a, b, depth)
                elif number == 5:
                    tensor = self.tensor(a, b)._replace(span=(before, b))
                    if tensor.name in initializers:
                        raise MalformedError(f"two initializers are called {tensor.name!r}")
                    initializers[tensor.name] = tensor
                elif number == 15:
                    raise MalformedError("it has sparse initializers, which no exporter of diffusion models writes")
                elif number in {11, 12} and depth == 0:
                    name, declared = self.value(a, b)
                    (inputs if number == 11 else outputs)[name] = declared
            before = b
        if depth:
            self.found.hidden.extend(tensor for tensor in initializers.values() if tensor.location)
        return inputs, outputs, initializers

    def node(self, start: int, end: int, depth: int) -> None:
        operator = domain = ""
        harmless = self.found.harmless
        for number, wire, a, b in self.fields(start, end):
            if wire != 2 or number < 4:
                continue
            if number == 4:
                operator = self.text(a, b)
            elif number == 7:
                domain = _standard(self.text(a, b))
            elif number == 5 and (b - a > 96 or self.data[a:b] not in harmless):
                self.attribute(a, b, depth)
        self.found.operators.add((domain, operator))

    def attribute(self, start: int, end: int, depth: int) -> None:
        plain = True
        for number, wire, a, b in self.fields(start, end):
            if wire != 2:
                continue
            if number in {5, 10}:
                plain = False
                tensor = self.tensor(a, b)
                if tensor.location:
                    self.found.hidden.append(tensor)
            elif number in {6, 11}:
                plain = False
                self.graph(a, b, depth + 1)
            elif number in {22, 23}:
                raise MalformedError("it has a sparse constant, which no exporter of diffusion models writes")
        if plain and end - start <= 96:
            self.found.harmless.add(bytes(self.data[start:end]))

    def value(self, start: int, end: int) -> tuple[str, Tensor]:
        name, dtype = "", "none"
        shape: list[int | str] = []
        for number, wire, a, b in self.fields(start, end):
            if number == 1 and wire == 2:
                name = self.text(a, b)
            elif number == 2 and wire == 2:
                for kind, _, c, d in self.fields(a, b):
                    if kind == 1:
                        dtype, shape = self.tensor_type(c, d)
        return name, Tensor(dtype, tuple(f"{name}_{axis}" if size == "" else size for axis, size in enumerate(shape)))

    def tensor_type(self, start: int, end: int) -> tuple[str, list[int | str]]:
        dtype = "none"
        shape: list[int | str] = []
        for number, wire, a, b in self.fields(start, end):
            if number == 1 and wire == 0:
                dtype = DTYPES.get(a, ("string", 0))[0]
            elif number == 2 and wire == 2:
                shape = [self.dimension(c, d) for kind, _, c, d in self.fields(a, b) if kind == 1]
        return dtype, shape

    def dimension(self, start: int, end: int) -> int | str:
        for number, wire, a, b in self.fields(start, end):
            if number == 1 and wire == 0:
                return a
            if number == 2 and wire == 2:
                return self.text(a, b)
        return ""


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
