"""IO binding: which arrays are copied, which are kept, and that none is overwritten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusette.models.errors import BundleError
from diffusette.runtime.engine.io_binding import HELD
from diffusette.runtime.engine.providers import TABLE
from diffusette.runtime.engine.session import open_session
from tests.support import small_graphs

CPU = TABLE["cpu"]
X = np.arange(16, dtype=np.float32).reshape(2, 8)
Z = X.sum(axis=1, keepdims=True) + np.arange(8, dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_read_only_feeds_are_cast_and_copied_once(tmp_path: Path, device: str | None, dtype: type[np.floating]) -> None:
    session = open_session(small_graphs.linear(tmp_path / "model.onnx", dtype=dtype), replace(CPU, device=device))
    x = X.copy()
    assert np.array_equal(session.run({"x": x})["z"], Z)
    x[:] = 0
    assert np.array_equal(session.run({"x": x})["z"], np.broadcast_to(np.arange(8), (2, 8)))
    x = X.copy()
    x.flags.writeable = False
    assert np.array_equal(session.run({"x": x})["z"], Z)
    (bound,) = session._idle
    held = bound._held["x"][0][1]
    for same in (x, np.broadcast_to(x, (2, 8)), x[:]):
        assert np.array_equal(session.run({"x": same})["z"], Z)
        assert [value for _, value in bound._held["x"]] == [held]
    assert np.array_equal(session.run({"x": x[::-1]})["z"], Z[::-1])  # another view of the same memory
    for number in range(10):  # a prompt and its negative take turns; what is over goes
        other = np.full((2, 8), number, np.float32)
        other.flags.writeable = False
        assert np.array_equal(session.run({"x": other})["z"], 8.0 * number + np.broadcast_to(np.arange(8), (2, 8)))
        assert len(bound._held["x"]) <= HELD
    with pytest.raises(BundleError, match="ONNX Runtime refuses"):
        session.run({"x": x[:, :3]})


@pytest.mark.parametrize("device", [None, "cpu"])
def test_changing_feeds_reuse_their_device_buffer_and_neither_feeds_nor_results_are_overwritten(tmp_path: Path, device: str | None) -> None:
    session = open_session(small_graphs.linear(tmp_path / "model.onnx"), replace(CPU, device=device))
    places: set[int] = set()
    fed, given = [np.full((2, 8), number, np.float32) for number in range(4)], list[np.ndarray]()
    for number, x in enumerate(fed):
        given.append(session.run({"x": x})["z"])
        places.update(value.data_ptr() for value in session._idle[0]._moving.values())
        for before in range(number + 1):
            assert np.array_equal(fed[before], np.full((2, 8), before))
            assert np.array_equal(given[before], 8.0 * before + np.broadcast_to(np.arange(8), (2, 8)))
    assert len(places) == (device is not None)
    assert places.isdisjoint(x.__array_interface__["data"][0] for x in fed)
    assert np.array_equal(session.run({"x": np.ones((3, 8))})["z"], 8.0 + np.broadcast_to(np.arange(8), (3, 8)))  # another shape
    assert np.array_equal(session.run({"x": X})["z"], Z)
    assert len(session._idle) == 1
