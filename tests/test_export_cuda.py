"""cuda.py, layout.py, fused.py: GPU graphs give the same numbers, as functions on the CPU and as ONNX Runtime's operators in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from diffusette.export import calibrate, components, cuda, fused, graph, layout, parity, reference, source, trace, write
from diffusette.export.half import to_half
from diffusette.export.targets import TARGETS
from diffusette.models import onnx_file
from diffusette.models.operators import check_operators
from tests import contrib_operators, tiny_models
from tests.test_export_passes import graph as small
from tests.test_export_passes import kinds, normal, run


def published(folder, feeds):
    """What the graph in `folder` gives with ONNX Runtime's operators as NumPy computes them; it is released."""
    fused.release(folder / write.GRAPH)
    proto = onnx.load(folder / write.GRAPH)
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} <= {"", "com.microsoft"}
    check_operators(onnx_file.read(folder / write.GRAPH), folder / write.GRAPH)
    for node in proto.graph.node:  # the evaluator does not know a missing output by its empty name
        for place, name in enumerate(node.output):
            node.output[place] = name or f"{node.output[0]}_unused_{place}"
    outputs = [value.name for value in proto.graph.output]
    return dict(zip(outputs, ReferenceEvaluator(proto, new_ops=contrib_operators.ALL).run(None, dict(feeds)), strict=True))


def check(model, passes, feeds, folder):
    """Applies `passes`: the outputs stay, as functions and as operators, in float32 and in half. Gives the kinds of nodes."""
    expected = run(model, feeds, folder / "before")
    model = graph.apply(model, passes)
    found = {"functions": run(model, feeds, folder / "after"), "operators": published(folder / "after", feeds)}
    left = kinds(model)
    write.save(to_half(model), folder / "half")
    halves = {
        "half functions": calibrate.open_graph(folder / "half" / write.GRAPH).run(feeds),
        "half operators": published(folder / "half", feeds),
    }
    for bar, many in ((110.0, found), (45.0, halves)):
        for name, one in many.items():
            assert parity.compare(_Given(one), [feeds], [expected]).db >= bar, name
    return left


class _Given:
    def __init__(self, outputs):
        self._outputs = outputs

    def run(self, _):
        return self._outputs


def norm(silu=True, sum_=None, channels=16, groups=4):
    """A convolution, perhaps a sum, GroupNormalization, perhaps SiLU, a convolution."""
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
    for node in model.graph:  # what torch's trace knows
        node.outputs[0].shape = ir.Shape(["n", channels, 1, 1]) if node.outputs[0].name == "t4" else model.graph.inputs[0].shape
    return model, feeds


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("sum_", "kind"),
    [(None, "GroupNorm.1"), ("vector", "SkipGroupNorm.vector.1"), ("picture", "SkipGroupNorm.1"), ("shared", "SkipGroupNorm.2")],
)
def test_group_norm_with_what_stands_around_it_becomes_one_operator_on_channels_last(silu, sum_, kind, tmp_path):
    model, feeds = norm(silu, sum_)
    left = check(model, (cuda.fuse_group_norm(last=True), layout.channels_last), feeds, tmp_path)
    assert left[kind] == 1
    assert not {"GroupNormalization", "QuickGelu"} & left.keys()
    assert left["Add"] == (sum_ == "shared")


def test_for_directml_group_norm_keeps_the_order_of_dimensions(tmp_path):
    model, feeds = norm()
    assert check(model, (cuda.fuse_group_norm(last=False),), feeds, tmp_path) == {"Conv": 2, "GroupNorm.first.1": 1}


@pytest.mark.parametrize(
    ("channels", "groups", "reason"),
    [(12, 12, "channels in pairs, and a group has 1"), (1028, 2, "groups of at most 512 channels, and these have 514")],
)
def test_a_group_norm_that_the_cuda_kernel_refuses_stays_with_a_reason(channels, groups, reason):
    nodes = [helper.make_node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=groups, name="n")]
    model = small(nodes, {"x": [1, channels, 2, 2]}, {"y": [1, channels, 2, 2]}, {"g": normal(channels), "b": normal(channels)})
    model = graph.apply(model, (cuda.fuse_group_norm(last=True),))
    assert kinds(model) == {"GroupNormalization": 1}
    assert graph.declined(model) == [f"n: the CUDA kernel takes {reason}"]


@pytest.mark.parametrize("channels", [64, 128, 256, 320, 512, 640, 960, 1280, 1920, 2560, 384, 768, 1536, 3072])
def test_the_cuda_kernel_takes_every_group_norm_of_the_published_models(channels):
    assert cuda.why_not_on_cuda(channels, 32) == ""


def test_a_flattened_picture_is_normalized_before_and_turned_once_on_each_way(tmp_path):
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
    for node in model.graph:  # what torch's trace knows
        value = node.outputs[0]
        value.shape = ir.Shape(shapes[value.name]) if value.name in shapes else value.shape
    passes = (layout.pictures_to_tokens, cuda.fuse_group_norm(last=True), layout.channels_last)
    left = check(model, passes, {"x": normal(2, 16, 3, 5)}, tmp_path)
    assert left == {"Transpose": 2, "GroupNorm.1": 1, "Reshape": 2, "MatMul": 1, "Shape": 1, "Gather": 1}


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
    left = check(model, (cuda.fuse_skip_layer_norm,), feeds, tmp_path)
    kind = f"SkipLayerNormalization{'.biased' if biased else ''}.{1 + shared}"
    assert left == {"MatMul": 1, kind: 1, "Relu": 1}


def test_bias_split_gelu_is_used_for_the_sizes_that_its_kernel_has(tmp_path):
    for channels, left in ((2560, {"BiasSplitGelu.1": 1, "Relu": 1}), (2562, {"Add": 1, "Split": 1, "Gelu": 1, "Mul": 1, "Relu": 1})):
        nodes = [
            helper.make_node("Add", ["x", "b"], ["s"]),
            helper.make_node("Split", ["s"], ["left", "right"], axis=-1, num_outputs=2, name="split"),
            helper.make_node("Gelu", ["right"], ["gelu"]),
            helper.make_node("Mul", ["left", "gelu"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ]
        model, feeds = tokens(nodes, {"b": normal(channels)}, channels, ("x",))
        assert check(model, (cuda.fuse_bias_split_gelu,), feeds, tmp_path / str(channels)) == left
        assert graph.declined(model) == (
            [] if channels == 2560 else ["split: BiasSplitGelu has kernels for (2560, 5120, 10240), and this has 2562"]
        )


def test_bias_add_is_used_for_the_channels_that_its_kernel_has(tmp_path):
    for channels, left in ((320, {"MatMul": 1, "BiasAdd.1": 1, "Relu": 1}), (24, {"MatMul": 1, "Add": 2, "Relu": 1})):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["mb"]),
            helper.make_node("Add", ["mb", "r"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ]
        weights = {"w": normal(channels, channels), "b": normal(channels)}
        model, feeds = tokens(nodes, weights, channels)
        assert check(model, (cuda.fuse_bias_add,), feeds, tmp_path / str(channels)) == left


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def unet(request, tmp_path_factory):
    """(component, its traced graph, inputs, what torch gives) of a tiny U-Net."""
    opened = source.open_folder(tiny_models.save(tmp_path_factory.mktemp("unet") / "model", request.param))
    component = components.build(opened, "unet")
    feeds = reference.cases(component)
    with reference.loaded(component):
        return component, trace.trace(component), feeds, reference.references(component, feeds)


@pytest.mark.parametrize("target", ["cuda", "directml"])
def test_the_u_net_agrees_with_torch_as_functions_and_as_operators_in_both_precisions(unet, target, tmp_path):
    component, traced, feeds, expected = unet
    model = graph.apply(traced.clone(), TARGETS[target])
    left = kinds(model)
    write.save(model, tmp_path / "float")
    write.save(to_half(write.load(tmp_path / "float")), tmp_path / "half")
    for name, bar in (("float", parity.BARS["fp32"]), ("half", parity.BARS["fp16"])):
        assert parity.compare(calibrate.open_graph(tmp_path / name / write.GRAPH), feeds, expected).db >= bar, name
        outputs = published(tmp_path / name, feeds[1])
        assert parity.compare(_Given(outputs), feeds[1:], expected[1:]).db >= bar, name
    assert not {"GroupNormalization", "InstanceNormalization"} & left.keys()
    assert [value.shape for value in model.graph.inputs] == [ir.Shape(port.shape) for port in component.inputs]


def test_for_cuda_only_transposes_around_convolutions_are_left(unet):
    model = graph.apply(unet[1].clone(), TARGETS["cuda"])
    for node in graph.nodes_of(model, "Transpose"):
        users = {use.node.op_type for use in node.outputs[0].uses()}
        assert users & {"Conv", "Shape"} or graph.producer(node.inputs[0], "Conv") is not None, node.name
