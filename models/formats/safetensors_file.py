"""Weights in safetensors files, for NumPy: read from a mapped file, written atomically.

The runtime's own reader, since the library's NumPy loader fails on int8 floats and copies. Everything that the header says
is checked before a byte of data is touched, in time and memory that the limits below bound.
Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, ResourceError
from .file_kind import looks_like
from .small_file import open_regular

Array = NDArray[Any]

MAX_HEADER = 16 << 20
"""Bytes; the largest checkpoints of the trade have half a megabyte."""
MAX_TENSORS = 32_768
METADATA = "__metadata__"
PART = 1 << 22
"""Elements that are converted at once."""

_DTYPES: Mapping[str, str] = MappingProxyType({
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
})  # fmt: skip
_NAMES = {name: short for short, name in _DTYPES.items()}
_STORED: Mapping[str, str] = MappingProxyType({"BF16": "uint16", "F8_E4M3": "uint8", "F8_E5M2": "uint8"})
"""Floats that NumPy has not: the integers that hold their bits."""


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    """As in the file: F32, BF16, …"""
    shape: tuple[int, ...]
    offset: int
    """Offset of its first byte in the file."""
    length: int


class Weights(Mapping[str, Array]):
    """The tensors of a file by name, each read on access.

    What NumPy knows comes as a read-only view of the mapped file; bfloat16 and 8-bit floats come as float32 in memory of
    their own. `close` gives the mapping back once nobody holds a view any more.
    """

    def __init__(self, path: Path, data: mmap.mmap, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self.path = path
        self.entries = entries
        self.metadata = metadata
        self._data: mmap.mmap | None = data

    def __getitem__(self, name: str) -> Array:
        if self._data is None:
            raise ValueError(f"{self.path} was closed")
        entry = self.entries[name]
        stored = _stored(entry)
        flat = np.frombuffer(self._data, stored, entry.length // stored.itemsize, entry.offset)
        return _widened(entry.dtype, flat).reshape(entry.shape)

    def read(self, name: str, dtype: Any = None) -> Array:
        """The tensor in memory of its own, as `dtype` if one is given; read and not mapped, for mapped pages count as memory as
        long as the file is open, and converted part by part.
        """
        entry = self.entries[name]
        stored = _stored(entry)
        count = entry.length // stored.itemsize
        whole = np.empty(count, dtype or _widened(entry.dtype, np.empty(0, stored)).dtype)
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            for start in range(0, count, PART):
                whole[start : start + PART] = _widened(entry.dtype, np.fromfile(file, stored, min(PART, count - start)))
        return whole.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        data, self._data = self._data, None
        if data is not None:
            with contextlib.suppress(BufferError):  # views are alive: the last one closes it
                data.close()


def open_weights(path: Path) -> Weights:
    """Open the safetensors file `path`. Only its header is read.

    Raises:
        BundleError: missing, a pickle or something else, or a header that is too large, contradicts itself or the file's size,
            names a dtype that is unknown here, or leaves bytes unused.
    """
    try:
        with open_regular(path, "weights in safetensors") as file:
            head = file.read(512)
            if len(head) < 10:
                raise BundleError(f"{path}: only {len(head)} bytes, too few for a safetensors file: download it again")
            size = int.from_bytes(head[:8], "little")
            total = os.fstat(file.fileno()).st_size
            if head[8:9] != b"{" or size > total - 8:
                raise BundleError(
                    f"{path}: not a safetensors file (looks like {looks_like(head)}): give weights in safetensors; pickles are never read"
                )
            if size > MAX_HEADER:
                raise BundleError(f"{path}: a header of {size} bytes, expected at most {MAX_HEADER}: convert the file again")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        entries, metadata = _header(data[8 : 8 + size], 8 + size, total, path)
    except BaseException:
        data.close()
        raise
    return Weights(path, data, entries, metadata)


def _header(text: bytes, start: int, total: int, path: Path) -> tuple[Mapping[str, Entry], Mapping[str, str]]:
    count = text.count(b'"dtype"')  # before anything is parsed: 100,000 small objects cost seconds
    if count > MAX_TENSORS:
        raise BundleError(f"{path}: {count} tensors, expected at most {MAX_TENSORS}: no model that is known here has so many")
    try:
        parsed: object = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: a damaged header ({error}): download the file again") from error
    if not isinstance(parsed, dict):
        raise BundleError(f"{path}: the header is no JSON object: download the file again")
    raw: dict[str, object] = parsed  # pyright: ignore[reportUnknownVariableType]  # JSON
    metadata = raw.pop(METADATA, {})
    entries: dict[str, Entry] = {}
    for name, said in raw.items():
        try:
            entries[name] = _entry(msgspec.convert(said, _Said), start)
        except (msgspec.ValidationError, BundleError) as error:
            raise BundleError(f"{path}: tensor {name[:200]!r}: {error}: download or convert the file again") from error
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].length)):
        if entry.offset != at:
            raise BundleError(
                f"{path}: tensor {name[:200]!r} begins at byte {entry.offset}, expected {at}: the file is damaged; download it again"
            )
        at += entry.length
    if at != total:
        raise BundleError(f"{path}: {total} bytes, but its tensors end at {at}: the file is damaged or cut off; download it again")
    try:
        return entries, msgspec.convert(metadata, dict[str, str])
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {METADATA}: {error}: convert the file again") from error


class _Said(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _entry(said: _Said, start: int) -> Entry:
    name = _DTYPES.get(said.dtype) or _STORED.get(said.dtype)
    if name is None:
        raise BundleError(f"dtype {said.dtype[:40]!r}, expected one of {', '.join((*_DTYPES, *_STORED))}")
    if len(said.shape) > 32 or any(not 0 <= size < 1 << 48 for size in said.shape):
        raise BundleError(f"impossible shape {list(said.shape)[:8]}")
    first, last = said.data_offsets
    needed = math.prod(said.shape) * np.dtype(name).itemsize
    if first < 0 or last - first != needed:
        raise BundleError(f"bytes {first} to {last}, but its shape {list(said.shape)} in {said.dtype} needs {needed}")
    return Entry(said.dtype, said.shape, start + first, needed)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def save_weights(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` to the safetensors file `path`: all of it or nothing, one tensor in memory at a time.

    `tensors` is asked twice for each name (once for its dtype and shape) and may read them from elsewhere. Data begins at a
    multiple of 8 bytes, large dtypes come first, so that every tensor is aligned.

    Raises:
        BundleError: a dtype that the format has no name for.
        ResourceError: the disk is full, or the folder cannot be written.
    """
    about = {name: (array.dtype.name, array.shape, array.nbytes) for name, array in tensors.items()}
    order = sorted(about, key=lambda name: (-np.dtype(about[name][0]).itemsize, name))
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        dtype, shape, length = about[name]
        if dtype not in _NAMES:
            raise BundleError(f"{path}: tensor {name!r} is {dtype}, expected one of {', '.join(_NAMES)}")
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (at, at + length)}
        at += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in order:
                    array = np.asarray(tensors[name], order="C")
                    array.astype(array.dtype.newbyteorder("<"), copy=False).tofile(file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}): free the disk, or choose another folder") from error


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 numbers given as their bits; exact, for a bfloat16 is a float32 without its lower half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float8_to_float32(bits: NDArray[np.uint8], exponent_bits: int) -> NDArray[np.float32]:
    """The float32 values of int8 floats given as their bits; exact.

    `exponent_bits` 4 is E4M3FN (no infinity, NaN at 0x7F and 0xFF), 5 is E5M2 (as IEEE 754 would have it).
    Micikevicius et al. 2022, "FP8 formats for deep learning", https://arxiv.org/abs/2209.05433.
    """
    fraction_bits, bias = 7 - exponent_bits, 2 ** (exponent_bits - 1) - 1
    code = np.arange(128)
    exponent, fraction = code >> fraction_bits, (code & (2**fraction_bits - 1)) / 2**fraction_bits
    significand: NDArray[np.float64] = fraction + (exponent > 0)
    value: NDArray[np.float64] = np.ldexp(significand, np.maximum(exponent, 1) - bias)
    if exponent_bits == 5:
        value[0x7C], value[0x7D:] = np.inf, np.nan
    else:
        value[0x7F] = np.nan
    return np.concatenate([value, -value]).astype(np.float32)[bits]


def _stored(entry: Entry) -> np.dtype[Any]:
    """The layout of a tensor's elements in the file."""
    return np.dtype(_DTYPES.get(entry.dtype) or _STORED[entry.dtype]).newbyteorder("<")


def _widened(dtype: str, flat: Array) -> Array:
    if dtype == "BF16":
        return bfloat16_to_float32(flat)
    if dtype in _STORED:
        return float8_to_float32(flat, 4 if dtype == "F8_E4M3" else 5)
    return flat
