"""Running graphs: the same cases on every provider of this machine, and everything that can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from diffusette.models.errors import BundleError, Cancelled, ProviderError, ResourceError
from diffusette.models.formats import onnx_reader, onnx_replace_weights
from diffusette.models.manifest import Tensor
from diffusette.runtime.engine import graph_cache, providers
from diffusette.runtime.engine import session as sessions
from diffusette.runtime.engine.ort_errors import mapped
from diffusette.runtime.engine.providers import TABLE
from diffusette.runtime.engine.session import SessionOptions, open_session
from tests.support import small_graphs

PRESENT = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=why))
    for name, provider in TABLE.items()
    for why in [providers.why_missing(provider)]
]
CPU = TABLE["cpu"]
X = np.arange(16, dtype=np.float32).reshape(2, 8)
Z = X.sum(axis=1, keepdims=True) + np.arange(8, dtype=np.float32)


@pytest.mark.parametrize("name", PRESENT)
@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(),
        SessionOptions(threads=1),
        SessionOptions(prepack=False),
        SessionOptions(arena=False),
        SessionOptions(dimensions={"n": 2}),
    ],
    ids=["defaults", "threads", "no prepacking", "no arena", "fixed shape"],
)
@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_every_provider_returns_the_right_numbers_with_every_option(
    tmp_path: Path, name: str, options: SessionOptions, external: bool
) -> None:
    provider = providers.resolve(name)
    if provider.fixed_shapes:
        options = replace(options, dimensions={"n": 2})
    session = open_session(small_graphs.linear(tmp_path / "model.onnx", external=external), provider, options)
    assert session.provider == name
    assert session.inputs == {"x": Tensor("float32", (options.dimensions.get("n", "n"), 8))}
    assert list(session.outputs) == ["z"]
    assert np.allclose(session.run({"x": X})["z"], Z, rtol=1e-2)  # OpenVINO computes in bfloat16 where it can
    assert np.allclose(session.run({"x": X[::-1]})["z"], Z[::-1], rtol=1e-2)


def test_feeds_are_cast_to_the_declared_dtypes_and_float16_outputs_become_float32(tmp_path: Path) -> None:
    session = open_session(small_graphs.linear(tmp_path / "model.onnx", dtype=np.float16), CPU)
    assert session.inputs["x"].dtype == "float16"
    result = session.run({"x": X.astype(np.float64)})["z"]
    assert result.dtype == np.float32
    assert np.array_equal(result, Z)


def test_wrong_feeds_are_refused_and_the_session_stays_usable(tmp_path: Path) -> None:
    session = open_session(small_graphs.linear(tmp_path / "model.onnx"), CPU)
    with pytest.raises(BundleError, match=r"the graph expects \['x'\], but received \['y'\]"):
        session.run({"y": X})
    with pytest.raises(BundleError, match="invalid dimensions for input"):
        session.run({"x": X[:, :3]})
    assert np.array_equal(session.run({"x": X})["z"], Z)


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("<html></html>")
    for path in (tmp_path / "model.onnx", tmp_path / "none.onnx"):
        with pytest.raises(BundleError, match=r"\.onnx on cpu: ONNX Runtime refuses"):
            open_session(path, CPU)
    node = helper.make_node("NoSuchOperator", ["x"], ["z"])
    bad = small_graphs.save(
        small_graphs.model([node], {"x": (TensorProto.FLOAT, [1])}, {"z": (TensorProto.FLOAT, [1])}, {}), tmp_path / "bad.onnx"
    )
    with pytest.raises(BundleError, match="NoSuchOperator"):
        open_session(bad, CPU)


def test_out_of_memory_is_a_typed_error_and_the_session_stays_usable(tmp_path: Path) -> None:
    session = open_session(small_graphs.zeros(tmp_path / "model.onnx"), CPU)
    for size in (1 << 50, 1 << 62):
        with pytest.raises(ResourceError, match=r"not enough memory .* --memory sequential or streamed") as caught:
            session.run({"shape": np.array([size])})
        assert caught.value.__cause__ is not None
    assert np.array_equal(session.run({"shape": np.array([3])})["y"], np.zeros(3))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("std::bad_alloc"), ResourceError),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), ResourceError),
        (RuntimeError("Exception: 8007000E Not enough memory resources are available"), ResourceError),
        (RuntimeError("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR"), ProviderError),
        (RuntimeError("80070057 The parameter is incorrect."), ProviderError),
        (RuntimeError("887A0006 The GPU will not respond to more commands"), ProviderError),
        (
            RuntimeError("nodes that are assigned to the default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."),
            ProviderError,
        ),
        (RuntimeError("This is an invalid model."), BundleError),
    ],
)
def test_messages_of_each_provider_map_to_the_right_error(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"^here: ") as caught, mapped("here"):
        raise error
    assert caught.value.__cause__ is error


def test_a_run_can_be_cancelled_from_another_thread_and_the_next_one_is_right(tmp_path: Path) -> None:
    session = open_session(small_graphs.endless(tmp_path / "model.onnx"), CPU)
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            session.run({"x": x, "n": np.array(1 << 50)})
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not outcome:
        session.cancel()  # a run that has not begun yet is not touched
        time.sleep(0.01)
    thread.join()
    assert np.array_equal(session.run({"x": x, "n": np.array(3)})["y"], x)


def test_threads_that_share_a_session_get_their_own_results(tmp_path: Path) -> None:
    for provider in (CPU, replace(CPU, one_run_at_a_time=True)):
        session = open_session(small_graphs.linear(tmp_path / "model.onnx"), provider, SessionOptions(threads=1))
        wrong: list[int] = []

        def work(number: int, session: sessions.Session = session, wrong: list[int] = wrong) -> None:
            x = np.full((2, 8), number, np.float32)
            right = 8 * x + np.arange(8)
            wrong.extend(number for _ in range(50) if not np.array_equal(session.run({"x": x})["z"], right))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


CYCLES = """
import sys
from pathlib import Path
import psutil
from diffusette.runtime.engine import graph_cache, providers
from diffusette.runtime.engine.session import SessionOptions, open_session
for _ in range(20):
    open_session(Path(sys.argv[1]), providers.resolve("cpu"), SessionOptions(threads=1, prepack=False)).close()
    print(psutil.Process().memory_info().rss)
"""


def test_closing_sessions_frees_their_memory(tmp_path: Path) -> None:
    path = small_graphs.convolution(tmp_path / "model.onnx", channels=512)  # 9 MB of weights
    done = subprocess.run([sys.executable, "-c", CYCLES, str(path)], capture_output=True, text=True, check=True)
    sizes = [int(line) for line in done.stdout.split()]
    assert sizes[-1] - sizes[0] < 9 << 20


KEPT = """
import sys
from pathlib import Path
import numpy as np
from diffusette.runtime.engine import graph_cache, providers
from diffusette.runtime.engine.session import give_memory_back, open_session

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) >> 10

first, second = (open_session(Path(sys.argv[1]), providers.resolve("cpu")) for _ in range(2))
for session in (first, second):
    session.run({"shape": np.array([300 << 18])})  # 300 MB
    print(anonymous())
give_memory_back()
print(anonymous())
first.run({"shape": np.array([300 << 18])})
print(anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_sessions_share_one_arena_and_free_it_on_request(tmp_path: Path) -> None:
    path = small_graphs.zeros(tmp_path / "model.onnx")
    done = subprocess.run([sys.executable, "-c", KEPT, str(path)], capture_output=True, text=True, check=True)
    after_one, after_both, given, again = map(int, done.stdout.split())
    assert 300 < after_one < 450
    assert after_both < 450
    assert given < 100
    assert 300 < again < 450


def test_a_closed_session_refuses_to_run(tmp_path: Path) -> None:
    session = open_session(small_graphs.linear(tmp_path / "model.onnx"), CPU)
    session.close()
    session.close()
    with pytest.raises(BundleError, match="the session is closed"):
        session.run({"x": X})


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
@pytest.mark.parametrize("build", [small_graphs.linear, small_graphs.convolution])
def test_replaced_weights_equal_a_graph_exported_with_them(tmp_path: Path, build: object, external: bool) -> None:
    assert callable(build)
    path = build(tmp_path / "model.onnx", external=external)
    known = onnx_reader.read(path).initializers
    new = {name: np.asarray(onnx_replace_weights.values(path, known[name]) * np.float32(1.5) + np.float32(0.25)) for name in ("w", "b")}
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "model.onnx").write_bytes(onnx_replace_weights.replaced(path, new))
    session = open_session(path, CPU, SessionOptions(weights=new))
    shape = [8 if isinstance(size, str) else size for size in session.inputs["x"].shape]
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = open_session(changed / "model.onnx", CPU).run({"x": x})
    before = open_session(path, CPU).run({"x": x})
    del new
    np.full(100_000, np.nan)  # would take the place of buffers that nobody kept
    found = session.run({"x": x})
    for name, value in expected.items():
        assert np.array_equal(found[name], value)
        assert not np.allclose(found[name], before[name])


def test_a_replaced_weight_may_have_more_rows(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    table = np.arange(20, dtype=np.float32).reshape(5, 4)
    proto = small_graphs.model([node], {"ids": (TensorProto.INT64, ["n"])}, {"rows": (TensorProto.FLOAT, ["n", 4])}, {"table": table})
    for external in (False, True):
        path = small_graphs.save(proto, tmp_path / f"{external}.onnx", external=external)
        session = open_session(path, CPU, SessionOptions(weights={"table": np.vstack([table, np.full((2, 4), 7, np.float32)])}))
        assert np.array_equal(session.run({"ids": np.array([6, 0])})["rows"], [[7, 7, 7, 7], [0, 1, 2, 3]])


def test_an_unknown_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no initializer 'lora'"):
        open_session(small_graphs.linear(tmp_path / "model.onnx"), CPU, SessionOptions(weights={"lora": X}))


def test_the_first_start_keeps_the_optimized_graph_and_the_second_opens_it(tmp_path: Path) -> None:
    path = small_graphs.convolution(tmp_path / "bundle/model.onnx", external=True)
    options = SessionOptions(cache=tmp_path / "cache", threads=1, dimensions={"h": 8, "w": 8})
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    plain = open_session(path, CPU, replace(options, cache=None)).run({"x": x})["y"]
    first = open_session(path, CPU, options)
    (entry,) = (tmp_path / "cache").iterdir()
    assert sorted(file.name for file in entry.iterdir()) == ["entry.json", "model.onnx", "model.onnx_data"]
    made = (entry / "model.onnx").stat().st_mtime_ns
    second = open_session(path, CPU, options)
    assert (entry / "model.onnx").stat().st_mtime_ns == made
    assert np.array_equal(first.run({"x": x})["y"], second.run({"x": x})["y"])
    assert np.array_equal(first.run({"x": x})["y"], plain)
    assert first.note == second.note == ""
    open_session(path, CPU, replace(options, dimensions={}))
    open_session(path, CPU, replace(options, dimensions={}, prepack=False))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    os.utime(path, ns=(0, 0))
    open_session(path, CPU, options)
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_damaged_cache_entry_is_rebuilt_and_one_that_cannot_be_loaded_is_noted(tmp_path: Path) -> None:
    path = small_graphs.convolution(tmp_path / "bundle/model.onnx")
    options = SessionOptions(cache=tmp_path / "cache")
    open_session(path, CPU, options)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = (entry / "model.onnx").read_bytes()
    (entry / "model.onnx").write_bytes(whole[:-10])
    assert open_session(path, CPU, options).note == ""
    assert (entry / "model.onnx").read_bytes() == whole
    (entry / "model.onnx").write_bytes(b"x" * len(whole))
    (entry / "entry.json").write_text(json.dumps({"files": {"model.onnx": graph_cache._checksum(entry / "model.onnx")}}))
    x = np.ones((1, 16, 4, 4), np.float32)
    for _ in range(2):
        session = open_session(path, CPU, options)
        assert session.note.startswith("the optimized graph cannot be loaded from the cache")
        assert session.run({"x": x})["y"].shape == x.shape


def test_an_unwritable_cache_is_skipped_and_noted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session = open_session(small_graphs.linear(tmp_path / "model.onnx"), CPU, SessionOptions(cache=tmp_path / "file/cache"))
    assert session.note.startswith(f"the optimized graph is not cached: {tmp_path / 'file/cache'} cannot be written")
    assert np.array_equal(session.run({"x": X})["z"], Z)


def test_a_bundle_that_is_replaced_while_a_session_uses_it_does_no_harm(tmp_path: Path) -> None:
    session = open_session(small_graphs.linear(tmp_path / "a/model.onnx", external=True), CPU, SessionOptions(prepack=False))
    small_graphs.linear(tmp_path / "b/model.onnx", external=True, dtype=np.float16)
    for name in ("model.onnx", "model.onnx_data"):
        (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    assert np.array_equal(session.run({"x": X})["z"], Z)


def test_directml_needs_fixed_shapes_and_the_error_names_the_free_ones(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="directml needs fixed shapes, but n are free"):
        open_session(small_graphs.linear(tmp_path / "model.onnx"), TABLE["directml"])


def test_the_largest_int8_numbers_are_summed_exactly(tmp_path: Path) -> None:
    weight = np.full((64, 64), 127, np.int8)
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    inputs, outputs = {"x": (TensorProto.UINT8, ["n", 64])}, {"y": (TensorProto.FLOAT, ["n", 64])}
    path = small_graphs.save(small_graphs.model(nodes, inputs, outputs, {"w": weight}), tmp_path / "model.onnx")
    for options in (SessionOptions(), SessionOptions(prepack=False, fold=False)):
        found = open_session(path, CPU, options).run({"x": np.full((3, 64), 255, np.uint8)})["y"]
        assert np.array_equal(found, np.full((3, 64), 255 * 127 * 64))  # a processor without VNNI would clamp pairs at 32767


def half(path: Path) -> Path:
    """x (1, 16, h, w) → a convolution with 16-bit weights, which are widened in the graph."""
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "wide"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {"w": np.random.default_rng(3).standard_normal((16, 16, 3, 3)).astype(np.float16)}
    shape = (TensorProto.FLOAT, [1, 16, "h", "w"])
    return small_graphs.save(small_graphs.model(nodes, {"x": shape}, {"y": shape}, weights), path, external=True)


def test_unfolded_weights_give_the_same_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 16, 9, 7), np.float32)
    for path in (half(tmp_path / "half.onnx"), small_graphs.convolution(tmp_path / "model.onnx")):
        folded, lean = (open_session(path, CPU, one).run({"x": x})["y"] for one in (SessionOptions(), SessionOptions(fold=False)))
        assert np.allclose(folded, lean, rtol=1e-5, atol=1e-5)


def test_a_requested_provider_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    if providers.why_missing(TABLE["cuda"]) == "":
        pytest.skip("CUDA is here")
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ProviderError, match="cuda was requested, but CPUExecutionProvider would run it"),
    ):
        open_session(small_graphs.linear(tmp_path / "model.onnx"), TABLE["cuda"])


def test_work_left_to_the_cpu_is_detected(tmp_path: Path) -> None:
    ort = providers.onnxruntime()
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    inference = ort.InferenceSession(str(small_graphs.convolution(tmp_path / "model.onnx")), settings, providers=["CPUExecutionProvider"])
    if not hasattr(inference, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell where nodes run")
    assert set(sessions.work_left_to_cpu(inference)) & {"Conv", "FusedConv"}


CHILD = """
import os, sys
import numpy as np
from pathlib import Path
from diffusette.runtime.engine import graph_cache, providers
from diffusette.runtime.engine.session import SessionOptions, open_session
session = open_session(Path(sys.argv[1]), providers.resolve("auto", "portable"), SessionOptions(cache=graph_cache.default_folder()))
result = session.run({"x": np.ones((2, 8), np.float32)})["z"]
try:
    session.run({"x": np.ones((2, 3), np.float32)})
except Exception as error:
    print(type(error).__name__)
links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
print([link for link in links if link.startswith("socket:")], result[0, 0])
print(session.note)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_opens_no_socket_and_leaves_no_file_but_its_cache_and_no_line_on_stderr(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "bundle/model.onnx")
    home = tmp_path / "home"
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DIFFUSETTE_", "ORT_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=keep | {"HOME": str(home), "TMPDIR": str(home)},
        cwd=home,
    )
    assert done.stdout.splitlines() == ["BundleError", "[] 8.0", ""]
    assert done.stderr == ""
    written = {file.relative_to(home).parts[:2] for file in home.rglob("*") if file.is_file()}
    assert written == {(".cache", "diffusette")}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a home that cannot be written")
def test_without_a_home_folder_the_cache_is_skipped_and_noted(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "bundle/model.onnx")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "DIFFUSETTE_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True, env=keep | {"HOME": "/proc/none"}
    )
    assert done.stdout.splitlines()[:2] == ["BundleError", "[] 8.0"]
    assert "is not cached: /proc/none/.cache/diffusette cannot be written" in done.stdout
    assert done.stderr == ""
