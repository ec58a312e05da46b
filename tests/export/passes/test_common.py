"""Each pass on a small graph: the outputs stay the same, and the expected nodes remain."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from diffusette.export.graphs import edit, save
from diffusette.export.passes import common, fusions, standard_opset, webgpu_channels
from diffusette.export.runtime_bridge import open_graph
from diffusette.models.errors import RequestError

RNG = np.random.default_rng(0)


def graph(nodes, inputs, outputs, weights=None, opset=23):
    """A model; `inputs` and `outputs` map names to shapes (float32). Outputs with shape None get theirs by inference."""
    proto = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    ir.passes.common.ShapeInferencePass()(model)
    return model


def run(model, feeds, folder):
    save.save(model, folder)
    return open_graph(folder / save.GRAPH).run(feeds)


def kinds(model):
    return Counter(node.op_type for node in model.graph)


def check(model, passes_, feeds, tmp_path, *, tolerance=1e-5):
    """Apply the passes and check that the outputs stay the same; return the node types of the result."""
    before = run(model, feeds, tmp_path / "before")
    model = edit.apply(model, passes_)
    after = run(model, feeds, tmp_path / "after")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance)
    return kinds(model)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_transposed_weights_are_stored_transposed_under_the_same_name(tmp_path):
    nodes = [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = graph(nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, {"w": normal(4, 6)})
    assert check(model, (common.fold_transposed_weights,), {"x": normal(3, 6)}, tmp_path) == {"MatMul": 1}
    assert model.graph.initializers["w"].shape == ir.Shape([6, 4])


def test_a_pad_becomes_uneven_padding_of_the_convolution(tmp_path):
    nodes = [
        helper.make_node("Pad", ["x", "amounts"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 0, 0]),
    ]
    weights = {"w": normal(5, 2, 3, 3), "amounts": np.array([0, 0, 0, 0, 0, 0, 1, 1])}
    assert check(graph(nodes, {"x": [1, 2, 8, 8]}, {"y": None}, weights), (common.fold_padding,), {"x": normal(1, 2, 8, 8)}, tmp_path) == {
        "Conv": 1
    }


def test_a_pad_of_channels_is_declined_with_a_reason(tmp_path):
    nodes = [
        helper.make_node("Pad", ["x", "amounts"], ["padded"]),
        helper.make_node("Conv", ["padded", "w"], ["y"], kernel_shape=[3, 3], name="conv"),
    ]
    model = graph(nodes, {"x": [1, 2, 8, 8]}, {"y": None}, {"w": normal(5, 3, 3, 3), "amounts": np.array([0, 1, 0, 0, 0, 0, 0, 0])})
    assert check(model, (common.fold_padding,), {"x": normal(1, 2, 8, 8)}, tmp_path) == {"Conv": 1, "Pad": 1}
    assert edit.declined(model) == ["conv: the Pad before it does not only extend height and width"]


def attention(**attributes):
    """Attention between the transposes that exporters write, on (batch, tokens, 4 heads × 6)."""
    nodes = [helper.make_node("Reshape", [name, "split"], [f"{name}4"]) for name in "qkv"]
    nodes += [helper.make_node("Transpose", [f"{name}4"], [f"{name}t"], perm=[0, 2, 1, 3]) for name in "qkv"]
    nodes += [
        helper.make_node("Attention", ["qt", "kt", "vt"], ["a"], name="attention", **attributes),
        helper.make_node("Transpose", ["a"], ["at"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["at", "join"], ["y"]),
    ]
    weights = {"split": np.array([0, 0, 4, 6]), "join": np.array([0, 0, 24])}
    return graph(nodes, {"q": ["b", "n", 24], "k": ["b", "m", 24], "v": ["b", "m", 24]}, {"y": ["b", "n", 24]}, weights)


@pytest.mark.parametrize(("attributes", "keys"), [({}, 7), ({"is_causal": 1}, 5), ({"scale": 0.3}, 7)])
def test_attention_and_its_transposes_become_one_node_on_tokens_and_channels(attributes, keys, tmp_path):
    feeds = {"q": normal(2, 5, 24), "k": normal(2, keys, 24), "v": normal(2, keys, 24)}
    assert check(attention(**attributes), (fusions.fuse_attention,), feeds, tmp_path) == {"MultiHeadAttention": 1}


def test_for_directml_a_causal_mask_is_a_bias_of_the_full_shape(tmp_path):
    feeds = {"q": normal(2, 5, 24), "k": normal(2, 5, 24), "v": normal(2, 5, 24)}
    found = check(attention(is_causal=1), (fusions.fuse_attention, fusions.causal_bias), feeds, tmp_path)
    assert (found["MultiHeadAttention"], found["Expand"]) == (1, 1)
    model = edit.apply(attention(is_causal=1), (fusions.fuse_attention, fusions.causal_bias))
    assert edit.nodes_of(model, "MultiHeadAttention")[0].attributes.keys() == {"num_heads"}


def test_attention_with_a_soft_cap_is_declined_with_a_reason():
    model = edit.apply(attention(softcap=5.0), (fusions.fuse_attention,))
    assert kinds(model)["Attention"] == 1
    assert edit.declined(model) == ["attention: MultiHeadAttention has no soft cap"]


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_a_gated_sigmoid_becomes_one_node(alpha, tmp_path):
    nodes = [helper.make_node("Mul", ["x", "alpha"], ["s"])] if alpha != 1.0 else []
    nodes += [helper.make_node("Sigmoid", ["s" if nodes else "x"], ["g"]), helper.make_node("Mul", ["x", "g"], ["y"])]
    model = graph(nodes, {"x": [3, 5]}, {"y": [3, 5]}, {"alpha": np.float32(alpha)} if alpha != 1.0 else {})
    assert check(model, (fusions.fuse_silu,), {"x": normal(3, 5)}, tmp_path) == {"QuickGelu": 1}


def test_group_norm_becomes_instance_norm_over_groups(tmp_path):
    nodes = [helper.make_node("GroupNormalization", ["x", "w", "b"], ["y"], num_groups=4, epsilon=1e-3)]
    model = graph(nodes, {"x": ["n", 12, "h", "w"]}, {"y": ["n", 12, "h", "w"]}, {"w": normal(12), "b": normal(12)})
    remaining = check(model, (fusions.lower_group_norm,), {"x": 3 + 2 * normal(2, 12, 5, 7)}, tmp_path)
    assert remaining["InstanceNormalization"] == 1
    assert "GroupNormalization" not in remaining


def test_computed_shapes_become_constants_or_the_shape_of_another_tensor(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Shape", ["x"], ["h"], start=2, end=3),
        helper.make_node("Shape", ["x"], ["w"], start=3, end=4),
        helper.make_node("Mul", ["h", "w"], ["hw"]),
        helper.make_node("Concat", ["n", "three", "hw"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["r"]),
        helper.make_node("Relu", ["r"], ["a"]),
        helper.make_node("Concat", ["n", "three", "h", "w"], ["whole"], axis=0),
        helper.make_node("Reshape", ["a", "whole"], ["y"]),
    ]
    model = graph(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, "h", "w"]}, {"three": np.array([3])})
    for value, shape in (("r", ["n", 3, "h*w"]), ("a", ["n", 3, "h*w"]), ("y", ["n", 3, "h", "w"])):
        next(out for node in model.graph for out in node.outputs if out.name == value).shape = ir.Shape(shape)
    assert check(model, (common.simplify_reshapes,), {"x": normal(2, 3, 4, 5)}, tmp_path) == {"Reshape": 2, "Relu": 1, "Shape": 1}


def test_only_a_split_along_the_last_axis_gets_axis_minus_one(tmp_path):
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2),
        helper.make_node("Split", ["x"], ["c", "d"], axis=1, num_outputs=2),
    ]
    model = graph(nodes, {"x": ["n", 4, 6]}, dict.fromkeys("abcd"))
    check(model, (common.split_from_the_end,), {"x": normal(2, 4, 6)}, tmp_path)
    assert [node.attributes["axis"].value for node in model.graph] == [-1, 1]


def test_gemm_becomes_a_matmul_and_a_bias(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    model = graph(nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, {"w": normal(4, 6), "b": normal(4)})
    remaining = check(model, (common.gemm_to_matmul, common.fold_transposed_weights), {"x": normal(3, 6)}, tmp_path)
    assert remaining == {"MatMul": 1, "Add": 1}


def test_a_scaled_gemm_is_declined_with_a_reason():
    model = graph([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=2.0, name="gemm")], {"x": [2, 6]}, {"y": [2, 4]}, {"w": normal(6, 4)})
    assert kinds(edit.apply(model, (common.gemm_to_matmul,))) == {"Gemm": 1}
    assert edit.declined(model) == ["gemm: this Gemm is not a linear layer with a constant weight"]


def test_pointwise_convolutions_next_to_transposes_to_tokens_become_matmuls(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Transpose", ["r"], ["back"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["back", "w2"], ["y"], kernel_shape=[1, 1]),
    ]
    model = graph(nodes, {"x": ["n", 6, "h", "w"]}, {"y": None}, {"w1": normal(4, 6, 1, 1), "b1": normal(4), "w2": normal(3, 4, 1, 1)})
    remaining = check(model, (common.pointwise_to_matmul,), {"x": normal(2, 6, 3, 5)}, tmp_path)
    assert remaining == {"Transpose": 2, "MatMul": 2, "Add": 1, "Relu": 1}


def test_a_strided_pointwise_convolution_stays(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]), helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1])]
    model = graph(nodes, {"x": [1, 6, 4, 4]}, {"y": None}, {"w": normal(4, 6, 1, 1)})
    assert check(model, (common.pointwise_to_matmul,), {"x": normal(1, 6, 4, 4)}, tmp_path) == {"Conv": 1, "Transpose": 1}


@pytest.mark.parametrize(("attributes", "keys"), [({}, 7), ({"is_causal": 1}, 5), ({"scale": 0.3}, 7)])
def test_attention_becomes_standard_operators(attributes, keys, tmp_path):
    feeds = {"q": normal(2, 5, 24), "k": normal(2, keys, 24), "v": normal(2, keys, 24)}
    remaining = check(attention(**attributes), (standard_opset.decompose_attention, standard_opset.at_opset(17)), feeds, tmp_path)
    assert remaining["Softmax"] == 1
    assert "Attention" not in remaining


@pytest.mark.parametrize("pass_", [standard_opset.expand_gelu, standard_opset.contrib_gelu])
def test_gelu_becomes_operators_of_older_opsets(pass_, tmp_path):
    model = graph([helper.make_node("Gelu", ["x"], ["y"])], {"x": [3, 5]}, {"y": [3, 5]})
    check(model, (pass_, standard_opset.at_opset(17)), {"x": normal(3, 5)}, tmp_path)
    assert model.graph.opset_imports[""] == 17


def test_a_split_by_number_becomes_a_split_by_sizes_in_older_opsets(tmp_path):
    nodes = [helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2)]
    check(graph(nodes, {"x": [3, 6]}, {"a": [3, 3], "b": [3, 3]}), (standard_opset.at_opset(17),), {"x": normal(3, 6)}, tmp_path)


def test_an_operator_that_the_opset_lacks_is_refused_by_name():
    model = graph([helper.make_node("Gelu", ["x"], ["y"])], {"x": [3, 5]}, {"y": [3, 5]})
    with pytest.raises(RequestError, match="opset 17 has no Gelu"):
        standard_opset.at_opset(17)(model)


@pytest.mark.parametrize(("channels", "padded"), [(9, 12), (6, 8), (15, 16), (3, 3), (4, 4), (8, 8), (12, 12), (10, 10)])
def test_convolutions_that_webgpu_computes_wrongly_get_more_channels(channels, padded, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    weights = {"w": normal(5, channels, 3, 3), "b": normal(5)}
    model = graph(nodes, {"x": ["n", channels, 6, 7]}, {"y": ["n", 5, 6, 7]}, weights)
    found = check(model, [webgpu_channels.pad_multiples_of_three], {"x": normal(2, channels, 6, 7)}, tmp_path)
    assert found == {"Conv": 1} | ({"Pad": 1} if padded != channels else {})
    shapes = {one.name: list(one.dims) for one in onnx.load(tmp_path / "after" / save.GRAPH, load_external_data=False).graph.initializer}
    assert shapes["w"] == [5, padded, 3, 3]
