"""Fused GPU graphs return the same outputs, as functions on the CPU and as ONNX Runtime's operators in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from diffusette.export import runtime_bridge
from diffusette.export.graphs import edit, parity, save
from diffusette.export.passes import contrib_functions, cuda_fusions, layout
from diffusette.export.passes.half_precision import to_half
from diffusette.export.sources import diffusers_folder
from diffusette.export.targets import TARGETS
from diffusette.export.tracing import build, torch_reference, trace
from diffusette.models.formats import onnx_reader
from diffusette.models.formats.onnx_operators import check_operators
from tests.export.passes.test_common import graph as small
from tests.export.passes.test_common import kinds, normal, run
from tests.support import contrib_operators, tiny_models


def published(folder, feeds):
    """Release the graph in `folder`; return its outputs, with ONNX Runtime's operators computed in NumPy."""
    contrib_functions.release(folder / save.GRAPH)
    proto = onnx.load(folder / save.GRAPH)
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} <= {"", "com.microsoft"}
    check_operators(onnx_reader.read(folder / save.GRAPH), folder / save.GRAPH)
    for node in proto.graph.node:  # the evaluator does not accept an empty name for a missing output
        for number, name in enumerate(node.output):
            node.output[number] = name or f"{node.output[0]}_unused_{number}"
    outputs = [value.name for value in proto.graph.output]
    return dict(zip(outputs, ReferenceEvaluator(proto, new_ops=contrib_operators.ALL).run(None, dict(feeds)), strict=True))


def check(model, passes, feeds, folder):
    """Apply `passes`; check that the outputs stay the same, as functions and operators, in float32 and float16; return the node types."""
    expected = run(model, feeds, folder / "before")
    model = edit.apply(model, passes)
    found = {"functions": run(model, feeds, folder / "after"), "operators": published(folder / "after", feeds)}
    remaining = kinds(model)
    save.save(to_half(model), folder / "half")
    halves = {
        "half functions": runtime_bridge.open_graph(folder / "half" / save.GRAPH).run(feeds),
        "half operators": published(folder / "half", feeds),
    }
    for bar, results in ((110.0, found), (45.0, halves)):
        for name, outputs in results.items():
            assert parity.compare(_Fixed(outputs), [feeds], [expected]).db >= bar, name
    return remaining


class _Fixed:
    """A session that returns the same outputs in every run."""

    def __init__(self, outputs):
        self._outputs = outputs

    def run(self, _):
        return self._outputs


def norm(silu=True, sum_=None, channels=16, groups=4):
    """Convolution, optional Add, GroupNormalization, optional SiLU, convolution."""
    nodes = [helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1])]
    inputs = {"x": ["n", channels, "h", "w"]}
    if sum_ == "vector":
        inputs["t"] = ["n", channels]
        nodes += [helper.make_node("Unsqueeze", ["t", "axes"], ["t4"]), helper.make_node("Add", ["c", "t4"], ["s"])]
    elif sum_:
        nodes += [helper.make_node("Add", ["c", "x"], ["s"])]
    nodes.append(
        helper.make_node("GroupNormalization", ["s" if sum_ else "c", "g", "b"], ["n0"], num_groups=groups, epsilon=1e-3, name="n")
    )
    if silu:
        nodes += [helper.make_node("QuickGelu", ["n0"], ["n1"], domain="com.microsoft", alpha=1.0)]
    nodes.append(helper.make_node("Conv", ["n1" if silu else "n0", "w2"], ["y"], pads=[1, 1, 1, 1]))
    outputs = {"y": ["n", channels, "h", "w"]}
    if sum_ == "shared":
        nodes.append(helper.make_node("Add", ["s", "y"], ["z"]))
        outputs = {"z": ["n", channels, "h", "w"]}
    weights = {name: 0.2 * normal(channels, channels, 3, 3) for name in ("w1", "w2")}
    model = small(nodes, inputs, outputs, weights | {"g": 1 + normal(channels), "b": normal(channels), "axes": np.array([2, 3])}, opset=21)
    model.graph.opset_imports["com.microsoft"] = 1
    feeds = {"x": normal(2, channels, 5, 7)} | ({"t": normal(2, channels)} if sum_ == "vector" else {})
    for node in model.graph:  # shapes that a trace by torch has
        node.outputs[0].shape = ir.Shape(["n", channels, 1, 1]) if node.outputs[0].name == "t4" else model.graph.inputs[0].shape
    return model, feeds


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("sum_", "kind"),
    [(None, "GroupNorm.1"), ("vector", "SkipGroupNorm.vector.1"), ("image", "SkipGroupNorm.1"), ("shared", "SkipGroupNorm.2")],
)
def test_group_norm_with_the_add_before_and_silu_after_it_becomes_one_operator_on_channels_last(silu, sum_, kind, tmp_path):
    model, feeds = norm(silu, sum_)
    remaining = check(model, (cuda_fusions.fuse_group_norm(last=True), layout.channels_last), feeds, tmp_path)
    assert remaining[kind] == 1
    assert not {"GroupNormalization", "QuickGelu"} & remaining.keys()
    assert remaining["Add"] == (sum_ == "shared")


def test_for_directml_group_norm_stays_channels_first(tmp_path):
    model, feeds = norm()
    assert check(model, (cuda_fusions.fuse_group_norm(last=False),), feeds, tmp_path) == {"Conv": 2, "GroupNorm.first.1": 1}


@pytest.mark.parametrize(
    ("channels", "groups", "reason"),
    [(12, 12, "an even number of channels per group, not 1"), (1028, 2, "at most 512 channels per group, not 514")],
)
def test_a_group_norm_that_the_cuda_kernel_refuses_stays_with_a_reason(channels, groups, reason):
    nodes = [helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=groups, name="n")]
    model = small(nodes, {"x": [1, channels, 2, 2]}, {"y": [1, channels, 2, 2]}, {"g": normal(channels), "b": normal(channels)})
    model = edit.apply(model, (cuda_fusions.fuse_group_norm(last=True),))
    assert kinds(model) == {"GroupNormalization": 1}
    assert edit.declined(model) == [f"n: the CUDA kernel needs {reason}"]


@pytest.mark.parametrize("channels", [64, 128, 256, 320, 512, 640, 960, 1280, 1920, 2560, 384, 768, 1536, 3072])
def test_the_cuda_kernel_accepts_every_group_norm_of_the_published_models(channels):
    assert cuda_fusions.why_not_on_cuda(channels, 32) == ""


def test_a_flattened_image_is_normalized_before_flattening_and_transposed_once_each_way(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("GroupNormalization", ["f", "g", "b"], ["n0"], num_groups=4),
        helper.make_node("Transpose", ["n0"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "w"], ["m"]),
        helper.make_node("Transpose", ["m"], ["back"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Reshape", ["back", "size"], ["y"]),
    ]
    weights = {"flat": np.array([0, 16, -1]), "g": normal(16), "b": normal(16), "w": normal(16, 16)}
    model = small(nodes, {"x": ["n", 16, "h", "w"]}, {"y": ["n", 16, "h", "w"]}, weights, opset=21)
    shapes = {"n0": ["n", 16, "h*w"], "t": ["n", "h*w", 16], "m": ["n", "h*w", 16], "back": ["n", 16, "h*w"]}
    for node in model.graph:  # shapes that a trace by torch has
        value = node.outputs[0]
        value.shape = ir.Shape(shapes[value.name]) if value.name in shapes else value.shape
    passes = (layout.image_to_tokens, cuda_fusions.fuse_group_norm(last=True), layout.channels_last)
    remaining = check(model, passes, {"x": normal(2, 16, 3, 5)}, tmp_path)
    assert remaining == {"Transpose": 2, "GroupNorm.1": 1, "Reshape": 2, "MatMul": 1, "Shape": 1, "Gather": 1}


def tokens(nodes, weights, channels, inputs=("x", "r")):
    shape = ["n", "t", channels]
    return small(nodes, dict.fromkeys(inputs, shape), dict.fromkeys(("y", "z")), weights, opset=20), {
        name: normal(2, 5, channels) for name in inputs
    }


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_sum_and_the_layer_norm_after_it_become_one_operator(biased, shared, tmp_path):
    bias = [helper.make_node("Add", ["m", "b"], ["mb"])] if biased else []
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        *bias,
        helper.make_node("Add", ["mb" if biased else "m", "r"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "g", "c"], ["y"], axis=-1),
        helper.make_node("Relu", ["s" if shared else "y"], ["z"]),
    ]
    model, feeds = tokens(nodes, {"w": normal(24, 24), "b": normal(24), "g": normal(24), "c": normal(24)}, 24)
    remaining = check(model, (cuda_fusions.fuse_skip_layer_norm,), feeds, tmp_path)
    kind = f"SkipLayerNormalization{'.biased' if biased else ''}.{1 + shared}"
    assert remaining == {"MatMul": 1, kind: 1, "Relu": 1}


def test_bias_split_gelu_is_used_for_the_channels_that_its_kernel_supports(tmp_path):
    for channels, remaining in ((2560, {"BiasSplitGelu.1": 1, "Relu": 1}), (2562, {"Add": 1, "Split": 1, "Gelu": 1, "Mul": 1, "Relu": 1})):
        nodes = [
            helper.make_node("Add", ["x", "b"], ["s"]),
            helper.make_node("Split", ["s"], ["left", "right"], axis=-1, num_outputs=2, name="split"),
            helper.make_node("Gelu", ["right"], ["gelu"]),
            helper.make_node("Mul", ["left", "gelu"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ]
        model, feeds = tokens(nodes, {"b": normal(channels)}, channels, ("x",))
        assert check(model, (cuda_fusions.fuse_bias_split_gelu,), feeds, tmp_path / str(channels)) == remaining
        assert edit.declined(model) == (
            [] if channels == 2560 else ["split: BiasSplitGelu supports (2560, 5120, 10240) channels, not 2562"]
        )


def test_bias_add_is_used_for_the_channels_that_its_kernel_supports(tmp_path):
    for channels, remaining in ((320, {"MatMul": 1, "BiasAdd.1": 1, "Relu": 1}), (24, {"MatMul": 1, "Add": 2, "Relu": 1})):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["mb"]),
            helper.make_node("Add", ["mb", "r"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ]
        weights = {"w": normal(channels, channels), "b": normal(channels)}
        model, feeds = tokens(nodes, weights, channels)
        assert check(model, (cuda_fusions.fuse_bias_add,), feeds, tmp_path / str(channels)) == remaining


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def unet(request, tmp_path_factory):
    """(component, traced graph, inputs, torch's outputs) of a tiny U-Net."""
    opened = diffusers_folder.open_folder(tiny_models.save(tmp_path_factory.mktemp("unet") / "model", request.param))
    component = build.build(opened, "unet")
    feeds = torch_reference.cases(component)
    with torch_reference.loaded(component):
        return component, trace.trace(component), feeds, torch_reference.references(component, feeds)


@pytest.mark.parametrize("target", ["cuda", "directml"])
def test_the_u_net_agrees_with_torch_as_functions_and_as_operators_in_both_precisions(unet, target, tmp_path):
    component, traced, feeds, expected = unet
    model = edit.apply(traced.clone(), TARGETS[target])
    remaining = kinds(model)
    save.save(model, tmp_path / "float")
    save.save(to_half(save.load(tmp_path / "float")), tmp_path / "half")
    for name, bar in (("float", parity.BARS["fp32"]), ("half", parity.BARS["fp16"])):
        assert parity.compare(runtime_bridge.open_graph(tmp_path / name / save.GRAPH), feeds, expected).db >= bar, name
        outputs = published(tmp_path / name, feeds[1])
        assert parity.compare(_Fixed(outputs), feeds[1:], expected[1:]).db >= bar, name
    assert not {"GroupNormalization", "InstanceNormalization"} & remaining.keys()
    assert [value.shape for value in model.graph.inputs] == [ir.Shape(port.shape) for port in component.inputs]


def test_for_cuda_only_transposes_around_convolutions_remain(unet):
    model = edit.apply(unet[1].clone(), TARGETS["cuda"])
    for node in edit.nodes_of(model, "Transpose"):
        users = {use.node.op_type for use in node.outputs[0].uses()}
        assert users & {"Conv", "Shape"} or edit.producer(node.inputs[0], "Conv") is not None, node.name


def test_functions_that_a_cut_graph_does_not_call_are_not_published(tmp_path, unet):
    save.save(edit.apply(unet[1].clone(), TARGETS["cuda"]), tmp_path)
    graph = onnx.load(tmp_path / save.GRAPH, load_external_data=False)
    assert graph.functions
    del graph.graph.node[:]
    (tmp_path / save.GRAPH).write_bytes(graph.SerializeToString())
    contrib_functions.release(tmp_path / save.GRAPH)
    assert not onnx.load(tmp_path / save.GRAPH, load_external_data=False).functions
