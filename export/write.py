"""Graphs onto disk, one tensor at a time.

Large tensors go into a data file beside the graph, each page-aligned so that it can be memory-mapped; nothing ever
holds the whole model. The same graph gives the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..models.manifest import File
from .graph import dims

GRAPH, DATA = "model.onnx", "model.onnx_data"
INLINE = 1_000_000
"""A model with less than this many bytes of weights is one file."""
SMALL = 1024
"""Tensors below this many bytes stay in the graph."""
PAGE, LINE = 4096, 64
_FINGERPRINTS: dict[tuple[int, int, int, int], File] = {}
"""Of files by device, number, size and time."""


def save(model: ir.Model, folder: Path) -> dict[str, File]:
    """Writes `model` as `model.onnx` (and `model.onnx_data`) into `folder`; gives size and hash of each by file name.

    Afterwards the model's large tensors are read from the data file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, File] = {}
    values = [value for value in model.graph.initializers.values() if value.const_value is not None and value.const_value.nbytes >= SMALL]
    if sum(value.const_value.nbytes for value in values if value.const_value is not None) >= INLINE:
        files[DATA] = _write_data(values, folder)
    data = _serialized(model)
    for value in values:
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _on_disk(folder / DATA, value.const_value.offset or 0, value.const_value)
    files[GRAPH] = _write(folder / GRAPH, data)
    return files


def save_beside(model: ir.Model, path: Path) -> File:
    """Writes `model`, whose large tensors lie in a data file of `path`'s folder, to `path`, and leaves them there."""
    return _write(path, _serialized(model))


def sharing(model: ir.Model, folder: Path) -> ir.Model:
    """`model` with its weights where `save` put those of the same name, type and shape into `folder`, to be saved beside them."""
    saved: ir.Model = cast("Any", ir).load(folder / GRAPH)
    for name, value in model.graph.initializers.items():
        there, here = saved.graph.initializers.get(name), value.const_value
        kept = None if there is None else there.const_value
        if kept is not None and here is not None and (kept.dtype, dims(kept)) == (here.dtype, dims(here)):
            value.const_value = kept
    return model


def _serialized(model: ir.Model) -> bytes:
    """The graph file of `model`, without what differs from one run or machine to another."""
    model.producer_name, model.producer_version, model.doc_string = "diffusette", "", ""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    proto.graph.name = "main"
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        part.doc_string = ""  # exporters leave stack traces and paths there
        del part.metadata_props[:]
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    return proto.SerializeToString(deterministic=True)


def load(folder: Path) -> ir.Model:
    """The model that `save` wrote into `folder`; large tensors stay on disk, and are read anew each time they are asked for."""
    model: ir.Model = cast("Any", ir).load(folder / GRAPH)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = _on_disk(folder / DATA, tensor.offset or 0, tensor)
    return model


def _on_disk(path: Path, offset: int, like: Any) -> ir.LazyTensor:
    """A tensor in the file at `path`. It is read, not mapped: mapped pages would count as memory for as long as the model lives."""
    shape, dtype = dims(like), like.dtype.numpy()
    count = math.prod(shape)

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.fromfile(path, dtype, count, offset=offset).reshape(shape), name=like.name)

    return ir.LazyTensor(read, dtype=like.dtype, shape=ir.Shape(shape), name=like.name)


def _write_data(values: list[ir.Value], folder: Path) -> File:
    digest, offset = hashlib.sha256(), 0
    places: list[tuple[ir.Value, int, int]] = []
    partial = folder / f"{DATA}.partial"

    def put(*pieces: bytes | memoryview) -> None:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)

    # One tensor is written while the next is read and made; never more than these two are held.
    with partial.open("wb") as file, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for value in values:
            assert value.const_value is not None
            data = np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8)
            padding = bytes(-offset % (PAGE if len(data) >= 4 * PAGE else LINE))
            if written is not None:
                written.result()
            written = writer.submit(put, padding, data.data)
            places.append((value, offset + len(padding), len(data)))
            offset += len(padding) + len(data)
        if written is not None:
            written.result()
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / DATA)  # a session may have mapped an older file of this name: never write into it
    for value, start, length in places:
        old = value.const_value
        assert old is not None
        value.const_value = ir.ExternalTensor(
            DATA, start, length, old.dtype, shape=ir.Shape(dims(old)), name=value.name or "", base_dir=folder
        )
    return File(offset, digest.hexdigest())


def _write(path: Path, data: bytes) -> File:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return File(len(data), hashlib.sha256(data).hexdigest())


def known(folder: Path, files: Mapping[str, File]) -> None:
    """Takes `files`, which `save` in another process wrote into `folder`, for what `fingerprint` would find there."""
    for name, file in files.items():
        about = (folder / name).stat()
        _FINGERPRINTS[about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns] = file


def fingerprint(path: Path) -> File:
    """Size and SHA-256 of the file at `path`; read once, however often it is renamed and asked for."""
    about = path.stat()
    key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
    if key not in _FINGERPRINTS:
        with path.open("rb") as file:
            _FINGERPRINTS[key] = File(about.st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return _FINGERPRINTS[key]
