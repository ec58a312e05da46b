"""Save graphs to disk, one tensor at a time.

Large tensors go into a data file beside the graph, page-aligned so that they can be memory-mapped. The whole model is never in memory.
The same model gives the same bytes.
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

from ...models.manifest import File
from .edit import dims

GRAPH, DATA = "model.onnx", "model.onnx_data"
INLINE = 1_000_000
"""A model with less than this many bytes of weights is one file."""
SMALL = 1024
"""Tensors below this many bytes stay in the graph."""
PAGE, LINE = 4096, 64
_FINGERPRINTS: dict[tuple[int, int, int, int], File] = {}
"""Sizes and hashes of known files, by device, inode, size and modification time."""


def save(model: ir.Model, folder: Path) -> dict[str, File]:
    """Write `model` as `model.onnx` (and `model.onnx_data`) into `folder`; return the size and hash of each file, by name.

    Afterwards, the model reads its large tensors from the data file.
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
    """Write `model` to `path`; its large tensors stay in a data file of the same folder."""
    return _write(path, _serialized(model))


def share_weights(model: ir.Model, folder: Path) -> ir.Model:
    """Let `model` share the weights that `save` wrote into `folder`, by name, type and shape, so that it can be saved beside them."""
    saved: ir.Model = cast("Any", ir).load(folder / GRAPH)
    for name, value in model.graph.initializers.items():
        other, tensor = saved.graph.initializers.get(name), value.const_value
        stored = None if other is None else other.const_value
        if stored is not None and tensor is not None and (stored.dtype, dims(stored)) == (tensor.dtype, dims(tensor)):
            value.const_value = stored
    return model


def _serialized(model: ir.Model) -> bytes:
    """Return the bytes of the graph file, without names and paths that differ between runs or machines."""
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
    """Open the model that `save` wrote into `folder`; large tensors stay on disk and are read on each access."""
    model: ir.Model = cast("Any", ir).load(folder / GRAPH)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = _on_disk(folder / DATA, tensor.offset or 0, tensor)
    return model


def _on_disk(path: Path, offset: int, like: Any) -> ir.LazyTensor:
    """Return a tensor in the file `path`. It is read, not mapped: mapped pages would count as memory as long as the model exists."""
    shape, dtype = dims(like), like.dtype.numpy()
    count = math.prod(shape)

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.fromfile(path, dtype, count, offset=offset).reshape(shape), name=like.name)

    return ir.LazyTensor(read, dtype=like.dtype, shape=ir.Shape(shape), name=like.name)


def _write_data(values: list[ir.Value], folder: Path) -> File:
    """Write `values` to the data file in `folder`, and make them read from it."""
    digest, offset = hashlib.sha256(), 0
    positions: list[tuple[ir.Value, int, int]] = []
    partial = folder / f"{DATA}.partial"

    def put(*chunks: bytes | memoryview) -> None:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)

    # One tensor is written while the next one is read and computed; only these two are in memory.
    with partial.open("wb") as file, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for value in values:
            assert value.const_value is not None
            data = np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8)
            padding = bytes(-offset % (PAGE if len(data) >= 4 * PAGE else LINE))
            if written is not None:
                written.result()
            written = writer.submit(put, padding, data.data)
            positions.append((value, offset + len(padding), len(data)))
            offset += len(padding) + len(data)
        if written is not None:
            written.result()
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / DATA)  # never write into an existing file: a session may have mapped it
    for value, start, length in positions:
        old = value.const_value
        assert old is not None
        value.const_value = ir.ExternalTensor(
            DATA, start, length, old.dtype, shape=ir.Shape(dims(old)), name=value.name or "", base_dir=folder
        )
    return File(offset, digest.hexdigest())


def _write(path: Path, data: bytes) -> File:
    """Write `data` to `path` atomically."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return File(len(data), hashlib.sha256(data).hexdigest())


def known(folder: Path, files: Mapping[str, File]) -> None:
    """Register `files`, which `save` wrote into `folder` in another process, so that `fingerprint` need not read them again."""
    for name, file in files.items():
        stat = (folder / name).stat()
        _FINGERPRINTS[stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns] = file


def fingerprint(path: Path) -> File:
    """Return the size and SHA-256 of the file `path`; the result is cached, across renames too."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _FINGERPRINTS:
        with path.open("rb") as file:
            _FINGERPRINTS[key] = File(stat.st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return _FINGERPRINTS[key]
