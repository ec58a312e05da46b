"""Safetensors for NumPy, judged by the safetensors library."""

from __future__ import annotations

import json
import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import numpy as judge
from safetensors import torch as torch_judge

from diffusette.models.errors import BundleError, ResourceError
from diffusette.models.formats.safetensors_file import MAX_HEADER, bfloat16_to_float32, float8_to_float32, open_weights, save_weights

RNG = np.random.default_rng(0)
PLAIN = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    found = {dtype: RNG.integers(0, 2, (3, 5)).astype(dtype) for dtype in PLAIN}
    return found | {"scalar": np.array(1.5, np.float32), "none": np.zeros((0, 4), np.float32), "ümläut": np.ones(7, np.int8)}


def raw(path: Path, header: Any, data: bytes = b"", *, size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


def tensor(first: int, last: int, dtype: str = "U8", shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [last - first] if shape is None else shape, "data_offsets": [first, last]}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    expected = arrays()
    judge.save_file(expected, tmp_path / "w.safetensors", {"format": "pt"})
    with open_weights(tmp_path / "w.safetensors") as weights:
        assert set(weights) == set(expected)
        assert weights.metadata == {"format": "pt"}
        for name, array in expected.items():
            assert weights[name].dtype == array.dtype
            assert weights[name].shape == array.shape
            assert np.array_equal(weights[name], array)
            assert not weights[name].flags.writeable
            assert np.array_equal(weights.read(name), array)
            assert weights.read(name).flags.writeable


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    expected = arrays()
    expected["transposed"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    expected["big-endian"] = np.arange(5, dtype=">i4")
    save_weights(tmp_path / "w.safetensors", expected, {"made": "here"})
    found = judge.load_file(tmp_path / "w.safetensors")
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(found[name], array)
    first = (tmp_path / "w.safetensors").read_bytes()
    save_weights(tmp_path / "w.safetensors", dict(reversed(expected.items())), {"made": "here"})
    assert (tmp_path / "w.safetensors").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_bfloat16_and_8_bit_floats_come_as_float32(tmp_path: Path) -> None:
    values = torch.cat([torch.randn(200), torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-40, 3e38, 448.0, 57344.0])])
    kinds = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    stored = {name: values.to(kind) for name, kind in kinds.items()}
    torch_judge.save_file(stored, tmp_path / "w.safetensors")
    weights = open_weights(tmp_path / "w.safetensors")
    for name, value in stored.items():
        assert weights[name].dtype == np.float32
        assert np.array_equal(weights[name], value.float().numpy(), equal_nan=True)


def test_every_8_and_16_bit_float_is_converted_exactly() -> None:
    every = np.arange(256, dtype=np.uint8)
    for bits, kind in ((4, ml_dtypes.float8_e4m3fn), (5, ml_dtypes.float8_e5m2)):
        assert np.array_equal(float8_to_float32(every, bits), every.view(kind).astype(np.float32), equal_nan=True)
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(bfloat16_to_float32(every), every.view(ml_dtypes.bfloat16).astype(np.float32), equal_nan=True)


BAD: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": tensor(0, 4), "b": tensor(2, 6)}, b"123456", "begins at byte"),
    "gap": ({"a": tensor(0, 2), "b": tensor(3, 6)}, b"123456", "begins at byte"),
    "late start": ({"a": tensor(1, 6)}, b"123456", "begins at byte"),
    "trailing bytes": ({"a": tensor(0, 4)}, b"123456", "its tensors end at"),
    "cut off": ({"a": tensor(0, 4)}, b"123", "its tensors end at"),
    "backwards": ({"a": tensor(4, 0, shape=(4,))}, b"1234", "needs 4"),
    "wrong size": ({"a": tensor(0, 4, "F32", (2,))}, b"1234", "needs 8"),
    "negative": ({"a": tensor(0, 4, shape=(-2, -2))}, b"1234", "impossible shape"),
    "huge": ({"a": tensor(0, 4, shape=(1 << 60, 1 << 60))}, b"1234", "impossible shape"),
    "many axes": ({"a": tensor(0, 1, shape=(1,) * 100)}, b"1", "impossible shape"),
    "unknown dtype": ({"a": tensor(0, 4, "F4")}, b"1234", "dtype 'F4', expected one of F64"),
    "missing range": ({"a": {"dtype": "U8", "shape": [4]}}, b"1234", "data_offsets"),
    "wrong type": ({"a": {"dtype": 7, "shape": [4], "data_offsets": [0, 4]}}, b"1234", "dtype"),
    "metadata": ({"__metadata__": {"a": 7}}, b"", "__metadata__"),
    "not an object": (b'{"a"', b"1234", "damaged header"),
    "deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"", "damaged header"),
    "duplicate": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
        "a key occurs twice",
    ),
    "duplicate inside": (b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1", "a key occurs twice"),
    "long number": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,1]}}', b"1", "damaged header"),
    "many tensors": ({f"t{i}": tensor(i, i + 1) for i in range(100_000)}, bytes(100_000), "100000 tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_lies_is_refused_in_bounded_time_and_memory(tmp_path: Path, name: str) -> None:
    header, data, said = BAD[name]
    path = raw(tmp_path / "w.safetensors", header, data)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(BundleError, match=said):
        open_weights(path)
    assert time.process_time() - started < 10
    assert tracemalloc.get_traced_memory()[1] < 20 * path.stat().st_size + (1 << 20)
    tracemalloc.stop()


def test_a_header_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = raw(tmp_path / "w.safetensors", b"{}", size=MAX_HEADER + 1)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"a header of {MAX_HEADER + 1} bytes, expected at most"):
        open_weights(path)
    with pytest.raises(BundleError, match="not a safetensors file"):
        open_weights(raw(tmp_path / "w.safetensors", b"{}", size=(1 << 64) - 1))


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exit, (3,))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.ckpt", "w.pt"])
def test_a_pickle_under_any_name_is_not_opened_by_a_pickle_reader(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol=4))
    with pytest.raises(BundleError, match=r"pickle.*pickles are never read"):
        open_weights(tmp_path / name)
    torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(BundleError, match="pickles are never read"):
        open_weights(tmp_path / name)


GOOD = judge.save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int8)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
def test_changed_bytes_give_weights_or_a_refusal_and_nothing_else(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    data = bytearray(GOOD[: cut or None])
    if at < len(data):
        data[at] = byte
    (tmp_path / "w.safetensors").write_bytes(data)
    try:
        with open_weights(tmp_path / "w.safetensors") as weights:
            for name in weights:
                assert weights[name].shape == weights.entries[name].shape
    except BundleError:
        pass


def test_missing_files_and_devices_are_called_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    kinds = ((tmp_path / "none", "no such file"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device"), (tmp_path / "pipe", "a pipe"))
    for path, what in kinds:
        with pytest.raises(BundleError, match=f"{what}; expected weights in safetensors"):
            open_weights(path)


def test_arrays_outlive_the_closed_file(tmp_path: Path) -> None:
    judge.save_file({"a": np.arange(1000, dtype=np.float32)}, tmp_path / "w.safetensors")
    weights = open_weights(tmp_path / "w.safetensors")
    taken = weights["a"]
    weights.close()
    assert taken.sum() == 499500
    with pytest.raises(ValueError, match="was closed"):
        weights["a"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"a": np.ones(3, np.float32)})
    before = (tmp_path / "w.safetensors").read_bytes()
    with pytest.raises(BundleError, match="tensor 'c' is complex64"):
        save_weights(tmp_path / "w.safetensors", {"c": np.ones(3, np.complex64)})
    with pytest.raises(ResourceError, match="cannot be written"):
        save_weights(tmp_path / "none/w.safetensors", {"a": np.ones(3, np.float32)})
    assert (tmp_path / "w.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
