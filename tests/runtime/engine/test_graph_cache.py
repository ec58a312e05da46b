"""The cache of optimized graphs: bounded, atomic, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusette.runtime.engine import graph_cache


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/model.onnx").write_bytes(b"g" * 100)
    return tmp_path / "bundle/model.onnx"


def make(path: Path) -> None:
    path.write_bytes(b"optimized")


def test_the_same_graph_is_optimized_once(tmp_path: Path, graph: Path) -> None:
    first, note = graph_cache.get(tmp_path / "cache", graph, ("cpu", 1), make)
    assert first is not None
    assert first.read_bytes() == b"optimized"
    assert note == ""
    assert graph_cache.get(tmp_path / "cache", graph, ("cpu", 1), pytest.fail) == (first, "")
    other, _ = graph_cache.get(tmp_path / "cache", graph, ("cpu", 2), make)
    assert other not in {None, first}


def test_the_least_recently_used_entry_is_removed(tmp_path: Path, graph: Path) -> None:
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
    assert "MiB, and the cache holds at most 8192 MiB" in note


def test_exceptions_of_the_maker_are_passed_on_and_leave_no_files(tmp_path: Path, graph: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        graph_cache.get(tmp_path / "cache", graph, (), fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_maker_that_was_overtaken_uses_the_other_result(tmp_path: Path, graph: Path) -> None:
    def slow(path: Path) -> None:
        graph_cache.get(tmp_path / "cache", graph, (), make)
        path.write_bytes(b"too late")

    found, note = graph_cache.get(tmp_path / "cache", graph, (), slow)
    assert found is not None
    assert found.read_bytes() == b"optimized"
    assert note == ""
    assert len(list((tmp_path / "cache").iterdir())) == 1


def entry_of(cache: Path, graph: Path) -> Path:
    found, _ = graph_cache.get(cache, graph, (), make)
    assert found is not None
    return found


def test_a_damaged_entry_is_made_again_though_its_size_is_right(tmp_path: Path, graph: Path) -> None:
    found = entry_of(tmp_path / "cache", graph)
    found.write_bytes(b"0ptimized")
    assert entry_of(tmp_path / "cache", graph).read_bytes() == b"optimized"


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_folders_that_other_users_can_write_are_not_used_and_that_is_said(tmp_path: Path, graph: Path) -> None:
    found = entry_of(tmp_path / "cache", graph)
    for folder in (found.parent, tmp_path / "cache"):
        mode = folder.stat().st_mode
        folder.chmod(0o777)
        cached, note = graph_cache.get(tmp_path / "cache", graph, (), pytest.fail)
        assert cached is None
        assert f"{folder} can be written by other users" in note
        folder.chmod(mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, graph: Path) -> None:
    found = entry_of(tmp_path / "cache", graph)
    os.chown(found.parent, 12345, 12345)
    cached, note = graph_cache.get(tmp_path / "cache", graph, (), pytest.fail)
    assert cached is None
    assert "belongs to another user" in note


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("what", ["pipe", "links", "list", "another file"])
def test_a_strange_entry_is_removed_and_made_again(tmp_path: Path, graph: Path, what: str) -> None:
    about = entry_of(tmp_path / "cache", graph).parent / "entry.json"
    about.unlink()
    if what == "pipe":
        os.mkfifo(about)
    elif what == "links":
        about.symlink_to(about)
    else:
        about.write_text("[]" if what == "list" else '{"files": {"../../x": "1"}}')
    assert entry_of(tmp_path / "cache", graph).read_bytes() == b"optimized"


def test_links_to_nowhere_beside_a_graph_or_in_the_cache_do_no_harm(tmp_path: Path, graph: Path) -> None:
    (graph.parent / "zz").symlink_to(tmp_path / "nowhere")
    (graph.parent / "circle").symlink_to("circle")
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache/zz").symlink_to(tmp_path / "nowhere")
    assert not graph_cache.pays(graph)
    assert entry_of(tmp_path / "cache", graph).read_bytes() == b"optimized"
    assert graph_cache.size(tmp_path / "cache") > 0
