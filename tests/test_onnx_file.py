"""Reading ONNX files without the onnx package, which is the judge here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from diffusette.models import onnx_file
from diffusette.models.errors import BundleError
from diffusette.models.operators import CONTRIB, check_operators
from diffusette.models.protobuf import encode_field
from tests import small_graphs


def nested() -> onnx.ModelProto:
    """Weights of many dtypes, a constant, branches within a loop, a function, an input that is also an initializer."""
    inner = helper.make_graph([helper.make_node("Relu", ["state"], ["r"])], "then", [], [helper.make_tensor_value_info("r", 1, [2])])
    other = helper.make_graph([helper.make_node("Neg", ["state"], ["r"])], "else", [], [helper.make_tensor_value_info("r", 1, [2])])
    body = helper.make_graph(
        [helper.make_node("If", ["go"], ["out"], then_branch=inner, else_branch=other), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", 7, []),
            helper.make_tensor_value_info("go", 9, []),
            helper.make_tensor_value_info("state", 1, [2]),
        ],
        [helper.make_tensor_value_info("go_on", 9, []), helper.make_tensor_value_info("out", 1, [2])],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2, np.float32))),
        helper.make_node("Loop", ["n", "", "x"], ["y"], body=body),
        helper.make_node("Twice", ["y"], ["z"], domain="mine"),
        helper.make_node("FastGelu", ["z"], ["out"], domain="com.microsoft"),
        helper.make_node("Add", ["x", "c"], ["unused"], domain="ai.onnx"),
    ]
    weights = {str(kind): np.arange(6).reshape(2, 3).astype(kind) for kind in ("float32", "float16", "int8", "int64", "bool", "float64")}
    inputs = {"x": (1, [2]), "n": (7, []), "float32": (1, [2, 3]), "free": (10, [None, "rows", 3])}
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    return small_graphs.model(nodes, inputs, {"out": (1, [2])}, weights, functions=[function])


def test_it_reads_what_onnx_reads(tmp_path: Path) -> None:
    path = small_graphs.save(nested(), tmp_path / "model.onnx")
    read = onnx_file.read(path)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read.inputs.items()} == {
        "x": ("float32", (2,)),
        "n": ("int64", ()),
        "free": ("float16", ("free_0", "rows", 3)),
    }
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read.outputs.items()} == {"out": ("float32", (2,))}
    operators = {"Constant", "Loop", "If", "Relu", "Neg", "Identity", "Add"}
    assert read.operators == {*(("", name) for name in operators), ("mine", "Twice"), ("com.microsoft", "FastGelu")}
    assert read.functions == {("mine", "Twice")}
    assert read.opsets == {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    data = path.read_bytes()
    for tensor in onnx.load(path).graph.initializer:
        found = read.initializers[tensor.name]
        assert (found.dtype, found.shape) == (numpy_helper.to_array(tensor).dtype.name, tuple(tensor.dims))
        assert data[found.offset : found.offset + found.length] == tensor.raw_data
        assert found.location == ""


def test_external_data_is_found_wherever_it_hangs(tmp_path: Path) -> None:
    proto = nested()
    branch = proto.graph.node[1].attribute[0].g.node[0].attribute[0].g
    branch.node.append(helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32))))
    for tensor, place in (
        (proto.graph.initializer[0], "a"),
        (proto.graph.node[0].attribute[0].t, "b"),
        (branch.node[1].attribute[0].t, "c"),
    ):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
        for key, value in (("location", place), ("offset", "64")):
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    read = onnx_file.read(tmp_path / "model.onnx")
    assert (read.initializers["float32"].location, read.initializers["float32"].offset, read.initializers["float32"].length) == (
        "a",
        64,
        24,
    )
    assert sorted((tensor.location, tensor.offset, tensor.length) for tensor in read.hidden) == [("b", 64, 8), ("c", 64, 12)]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b'{"error": "not found"}', "JSON"),
        (b"PK\x03\x04" + b"\0" * 100, "pickle"),
        (b"\x80\x04\x95" + b"\0" * 100, "pickle"),
        ((2).to_bytes(8, "little") + b"{}", "safetensors"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (bytes(range(256)), "damaged"),
    ],
)
def test_what_is_no_onnx_model_is_refused_and_named(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=rf"not an ONNX model.*{kind}"):
        onnx_file.read(tmp_path / "model.onnx")


def test_half_a_model_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    data = small_graphs.linear(tmp_path / "whole.onnx").read_bytes()
    for size in range(1, len(data), 11):
        (tmp_path / "model.onnx").write_bytes(data[:size])
        with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX model"):
            onnx_file.read(tmp_path / "model.onnx")


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(BundleError, match="not a regular file"):
            onnx_file.read(path)
    with pytest.raises(BundleError, match="cannot be read"):
        onnx_file.read(tmp_path / "missing")


NESTED = nested().SerializeToString()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_graph_or_a_refusal_and_nothing_else(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(NESTED)
    for at, byte in edits:
        data[at % len(data)] = byte
    (tmp_path / "model.onnx").write_bytes(data)
    with contextlib.suppress(BundleError):
        onnx_file.read(tmp_path / "model.onnx")


def test_a_graph_within_a_graph_without_end_is_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(2000):
        graph = encode_field(1, encode_field(4, b"If") + encode_field(5, encode_field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x09" + encode_field(8, b"\x10\x12") + encode_field(7, graph))
    with pytest.raises(BundleError, match="graphs within one another"):
        onnx_file.read(tmp_path / "model.onnx")


def test_impossible_tensors_are_refused(tmp_path: Path) -> None:
    path = small_graphs.linear(tmp_path / "model.onnx", external=True)
    for change, said in (
        ({"length": "5"}, "needs 256 bytes, but says 5"),
        ({"offset": "-1"}, "'-1' is not the place"),
        ({"offset": "9" * 400}, "is not the place"),
        ({"location": ""}, "no place"),
    ):
        proto = onnx.load(path, load_external_data=False)
        for entry in proto.graph.initializer[0].external_data:
            entry.value = change.get(entry.key, entry.value)
        (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(BundleError, match=said):
            onnx_file.read(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("domain", "operator", "fine"),
    [
        ("", "Conv", True),
        ("ai.onnx", "Attention", True),
        ("com.microsoft", "MultiHeadAttention", True),
        ("com.microsoft", "EPContext", False),
        ("com.microsoft", "WordConvEmbedding", False),
        ("ai.onnx.ml", "TreeEnsemble", False),
        ("evil.example", "RunShell", False),
    ],
)
def test_only_known_operators_may_run(tmp_path: Path, domain: str, operator: str, fine: bool) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    path = small_graphs.save(small_graphs.model([node], {"x": (1, [1])}, {"y": (1, [1])}, {}), tmp_path / "model.onnx")
    if fine:
        check_operators(onnx_file.read(path), path)
    else:
        with pytest.raises(BundleError, match=f"operator '{operator}' of domain '{domain}' is refused"):
            check_operators(onnx_file.read(path), path)


def test_every_listed_operator_exists_in_onnx_runtime() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # the judge of this test alone

    assert {schema.name for schema in state.get_all_operator_schema() if schema.domain == "com.microsoft"} >= CONTRIB


def test_a_forbidden_operator_is_found_in_branches_and_functions(tmp_path: Path) -> None:
    for place in ("branch", "function"):
        proto = nested()
        bad = helper.make_node("EPContext", [], ["k"], domain="com.microsoft")
        where = proto.functions[0] if place == "function" else proto.graph.node[1].attribute[0].g.node[0].attribute[0].g
        where.node.append(bad)
        path = small_graphs.save(proto, tmp_path / f"{place}.onnx")
        with pytest.raises(BundleError, match="EPContext"):
            check_operators(onnx_file.read(path), path)


def test_a_function_of_the_file_does_not_make_a_forbidden_name_good(tmp_path: Path) -> None:
    for domain, fine in (("mine", True), ("com.microsoft", False), ("ai.onnx.ml", False)):
        body = [helper.make_node("Add", ["a", "a"], ["b"])]
        function = helper.make_function(domain, "EPContext", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
        node = helper.make_node("EPContext", ["x"], ["y"], domain=domain)
        proto = small_graphs.model([node], {"x": (1, [1])}, {"y": (1, [1])}, {}, functions=[function])
        path = small_graphs.save(proto, tmp_path / "model.onnx")
        if fine:
            check_operators(onnx_file.read(path), path)
        else:
            with pytest.raises(BundleError, match="EPContext"):
                check_operators(onnx_file.read(path), path)
