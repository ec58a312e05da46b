"""export/packaging/staging.py: one rename, or nothing. Faults are caused for real: kill -9, a full disk, two exports at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import onnx_ir as ir
import pytest

from diffusette.export import runtime_bridge
from diffusette.export.graphs import save
from diffusette.export.packaging.staging import staged
from diffusette.models.errors import RequestError, ResourceError


def build(destination, text, *, key="key", force=False):
    with staged(destination, key, force=force) as stage:
        (stage.bundle / "file").write_text(text)


def test_the_bundle_appears_at_its_name_and_nothing_else_stays(tmp_path):
    build(tmp_path / "out", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_an_existing_destination_is_refused_without_force_and_stays_as_it_is(tmp_path):
    build(tmp_path / "out", "one")
    with pytest.raises(RequestError, match=r"exists.*--force"):
        build(tmp_path / "out", "two")
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_force_replaces_the_whole_folder(tmp_path):
    build(tmp_path / "out", "one")
    (tmp_path / "out" / "left over").write_text("x")
    build(tmp_path / "out", "two", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_somebody_has_open_in_the_replaced_bundle_goes_on_reading(tmp_path):
    build(tmp_path / "out", "one")
    with (tmp_path / "out" / "file").open() as live:
        build(tmp_path / "out", "two", force=True)
        assert live.read() == "one"


def weighty(weight):
    """x (n, 1024) → x · weight, 4 MB."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 1024]), type=ir.TensorType(ir.DataType.FLOAT))
    data = ir.tensor(np.full((1024, 1024), weight, np.float32))
    value = ir.Value(name="w", shape=data.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=data)
    node = ir.node("MatMul", [x, value])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20}), ir_version=10)


def test_a_session_goes_on_while_its_bundle_is_replaced(tmp_path):
    for number in (1, 2):
        with staged(tmp_path / "out", str(number), force=True) as stage:
            save.save(weighty(number), stage.bundle)
        if number == 1:
            session = runtime_bridge.open_graph(tmp_path / "out" / save.GRAPH, lean=True)  # its weights are mapped from the file
            feed = {"x": np.ones((1, 1024), np.float32)}
            before = session.run(feed)["y"]
    np.testing.assert_array_equal(session.run(feed)["y"], before)
    assert runtime_bridge.open_graph(tmp_path / "out" / save.GRAPH).run(feed)["y"][0, 0] == 2 * before[0, 0]


def test_a_missing_parent_folder_is_refused_and_not_made(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        build(tmp_path / "nowhere" / "out", "one")
    assert not (tmp_path / "nowhere").exists()


def fail(destination, key):
    """An export that stops after its first stage."""
    with staged(destination, key, force=False) as stage:
        stage.remember("first", {"number": 1})
        (stage.bundle / "file").write_text("half")
        raise ValueError("stop")


def test_an_error_inside_leaves_nothing_at_the_name_and_finished_stages_for_the_next_run(tmp_path):
    with pytest.raises(ValueError, match="stop"):
        fail(tmp_path / "out", "key")
    assert not (tmp_path / "out").exists()
    with staged(tmp_path / "out", "key", force=False) as stage:
        assert stage.recall("first") == {"number": 1}
        assert stage.recall("second") is None


def test_stages_of_an_export_with_other_options_are_dropped(tmp_path):
    with pytest.raises(ValueError, match="stop"):
        fail(tmp_path / "out", "one")
    with staged(tmp_path / "out", "another", force=False) as stage:
        assert stage.recall("first") is None
        assert list(stage.bundle.iterdir()) == []


def child(code, tmp_path):
    """A process that runs `code` with `destination` set, and says "ready" on its first line."""
    head = "from pathlib import Path\nimport time\nfrom diffusette.export.packaging.staging import staged\n"
    head += f"destination = Path({str(tmp_path / 'out')!r})\n"
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


WORKING = """
with staged(destination, "key", force=True) as stage:
    stage.remember("first", {"number": 1})
    (stage.bundle / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_kill_9_leaves_nothing_at_the_name_and_the_next_run_goes_on_from_the_finished_stage(tmp_path):
    process = child(WORKING, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    with staged(tmp_path / "out", "key", force=False) as stage:
        assert stage.recall("first") == {"number": 1}


def test_two_exports_to_one_destination_one_is_refused(tmp_path):
    process = child(WORKING, tmp_path)
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ResourceError, match="another export is writing out"):
            build(tmp_path / "out", "two")
    finally:
        process.kill()
        process.communicate()


def test_a_replacement_killed_between_its_two_renames_is_put_back(tmp_path):
    build(tmp_path / "out", "one")
    (tmp_path / "out").rename(tmp_path / ".out.old")  # what systems without an exchanging rename pass through
    with pytest.raises(RequestError, match="exists"):
        build(tmp_path / "out", "two")
    assert (tmp_path / "out" / "file").read_text() == "one"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_is_told_the_rest_is_removed_and_the_older_export_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        build(disk / "out", "one")
        with pytest.raises(ResourceError, match="disk is full"):
            build(disk / "out", "x" * 4_000_000, force=True)
        assert (disk / "out" / "file").read_text() == "one"
        assert [path.name for path in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
