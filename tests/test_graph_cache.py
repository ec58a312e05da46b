"""The cache of optimized graphs: bounded, atomic, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusette.runtime import graph_cache


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/model.onnx").write_bytes(b"g" * 100)
    return tmp_path / "bundle/model.onnx"


def make(path: Path) -> None:
    path.write_bytes(b"optimized")


def test_the_same_request_is_made_once(tmp_path: Path, graph: Path) -> None:
    first, note = graph_cache.get(tmp_path / "cache", graph, ("cpu", 1), make)
    assert first is not None
    assert first.read_bytes() == b"optimized"
    assert note == ""
    assert graph_cache.get(tmp_path / "cache", graph, ("cpu", 1), pytest.fail) == (first, "")
    other, _ = graph_cache.get(tmp_path / "cache", graph, ("cpu", 2), make)
    assert other not in {None, first}


def test_what_was_not_used_for_longest_gives_way(tmp_path: Path, graph: Path) -> None:
    entries: list[Path] = []
    for number in range(3):
        found, _ = graph_cache.get(tmp_path / "cache", graph, (number,), make)
        assert found is not None
        with found.open("r+b") as file:
            file.truncate(graph_cache.LIMIT // 3 - 1000)  # sparse
        entries.append(found.parent)
        os.utime(found.parent, (3 - number, 3 - number))
    killed = tmp_path / "cache" / f"{graph_cache._TEMPORARY}killed"
    killed.mkdir()
    os.utime(killed, (9, 9))
    graph_cache._make_room(tmp_path / "cache", graph_cache.LIMIT // 4)
    assert [entry.exists() for entry in entries] == [True, True, False]
    assert not killed.exists()


def test_a_graph_that_is_larger_than_the_cache_is_not_kept(tmp_path: Path, graph: Path) -> None:
    with graph.open("r+b") as file:
        file.truncate(graph_cache.LIMIT)
    found, note = graph_cache.get(tmp_path / "cache", graph, (), pytest.fail)
    assert found is None
    assert "MiB are more than the cache may hold" in note


def test_what_the_maker_raises_is_passed_on_and_leaves_nothing(tmp_path: Path, graph: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        graph_cache.get(tmp_path / "cache", graph, (), fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_maker_that_was_overtaken_uses_what_the_other_made(tmp_path: Path, graph: Path) -> None:
    def slow(path: Path) -> None:
        graph_cache.get(tmp_path / "cache", graph, (), make)
        path.write_bytes(b"too late")

    found, note = graph_cache.get(tmp_path / "cache", graph, (), slow)
    assert found is not None
    assert found.read_bytes() == b"optimized"
    assert note == ""
    assert len(list((tmp_path / "cache").iterdir())) == 1
