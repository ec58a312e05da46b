"""Every operator of the `webgpu` graphs, one at a time, as WebGPU computes it against the CPU.

`tests/export/test_targets.py` holds the graphs to this list, so that no operator is there that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from diffusette.runtime.engine import plugins, providers
from diffusette.runtime.engine.ort_library import onnxruntime
from diffusette.runtime.engine.provider_table import TABLE

Array = NDArray[Any]
RNG = np.random.default_rng(0)
WEBGPU = TABLE["webgpu"]
MISSING = providers.why_missing(WEBGPU)
needs_webgpu = pytest.mark.skipif(bool(MISSING), reason=MISSING)
MICROSOFT = "com.microsoft"


def normal(*shape: int, scale: float = 1.0) -> Array:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def node(kind: str, inputs: str, **attributes: Any) -> tuple[str, list[str], dict[str, Any]]:
    return kind, inputs.split(","), attributes


def sizes(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


X = normal(2, 24, 64)
IMAGE = normal(2, 32, 16, 16)
INT4 = {"K": 320, "N": 64, "bits": 4, "block_size": 32}
CASES: Mapping[str, tuple[tuple[str, list[str], dict[str, Any]], Mapping[str, Array]]] = {
    "Add": (node("Add", "x,y"), {"x": X, "y": normal(64)}),
    "ArgMax": (node("ArgMax", "x", axis=-1, keepdims=0), {"x": np.arange(48, dtype=np.int32).reshape(2, 24)}),
    "Cast": (node("Cast", "x", to=onnx.TensorProto.INT32), {"x": normal(5, 7, scale=9)}),
    "Concat": (node("Concat", "x,y", axis=1), {"x": IMAGE, "y": normal(2, 8, 16, 16)}),
    "Conv 3x3": (node("Conv", "x,w,b", pads=[1] * 4), {"x": IMAGE, "w": normal(64, 32, 3, 3), "b": normal(64)}),
    "Conv 1x1": (node("Conv", "x,w,b"), {"x": IMAGE, "w": normal(64, 32, 1, 1), "b": normal(64)}),
    "Conv, stride 2": (node("Conv", "x,w,b", pads=[1] * 4, strides=[2, 2]), {"x": IMAGE, "w": normal(64, 32, 3, 3), "b": normal(64)}),
    "Conv, padded below": (
        node("Conv", "x,w,b", pads=[0, 0, 1, 1], strides=[2, 2]),
        {"x": IMAGE, "w": normal(8, 32, 3, 3), "b": normal(8)},
    ),
    "Conv, 2880 products": (node("Conv", "x,w,b", pads=[1] * 4), {"x": normal(1, 320, 8, 8), "w": normal(64, 320, 3, 3), "b": normal(64)}),
    "Conv of 9 channels, padded": (
        node("Conv", "x,w,b", pads=[1] * 4),
        {"x": normal(2, 12, 8, 8), "w": normal(32, 12, 3, 3), "b": normal(32)},
    ),
    "Cos": (node("Cos", "x"), {"x": normal(2, 32, scale=300)}),
    "Div": (node("Div", "x,y"), {"x": X, "y": np.abs(normal(64)) + 1}),
    "Equal": (node("Equal", "x,y"), {"x": sizes(1, 2, 3, 4).astype(np.int32), "y": np.full(1, 2, np.int32)}),
    "Gather": (node("Gather", "x,y"), {"x": normal(40, 64), "y": sizes(3, 0, 39, 7)}),
    "GatherElements": (node("GatherElements", "x,y", axis=1), {"x": X, "y": np.full((2, 1, 64), 5, np.int64)}),
    "Gelu": (node("Gelu", "x"), {"x": X * 3}),
    "Gemm": (node("Gemm", "x,w,b", transB=1), {"x": normal(2, 320), "w": normal(64, 320), "b": normal(64)}),
    "InstanceNormalization": (node("InstanceNormalization", "x,g,b"), {"x": normal(2, 32, 4096) + 3, "g": normal(32), "b": normal(32)}),
    "LayerNormalization": (node("LayerNormalization", "x,g,b"), {"x": X + 2, "g": normal(64), "b": normal(64)}),
    "MatMul": (node("MatMul", "x,w"), {"x": normal(2, 24, 320), "w": normal(320, 64)}),
    "MatMul, 2880 products": (node("MatMul", "x,w"), {"x": normal(2, 24, 2880), "w": normal(2880, 64)}),
    "MatMul of a batch": (node("MatMul", "x,w"), {"x": normal(2, 4, 24, 16), "w": normal(2, 4, 16, 77)}),
    "MatMulNBits": (
        node("MatMulNBits", "x,w,s", **INT4),
        {"x": normal(2, 24, 320), "w": RNG.integers(0, 256, (64, 10, 16), np.uint8), "s": np.abs(normal(640, scale=0.01))},
    ),
    "Mul": (node("Mul", "x,y"), {"x": X, "y": normal(2, 24, 1)}),
    "Pad": (node("Pad", "x,y"), {"x": normal(2, 9, 8, 8), "y": sizes(0, 0, 0, 0, 0, 3, 0, 0)}),
    "QuickGelu": (node("QuickGelu", "x", alpha=1.702), {"x": X * 3}),
    "QuickGelu as SiLU": (node("QuickGelu", "x", alpha=1.0), {"x": X * 3}),
    "Reshape": (node("Reshape", "x,y"), {"x": X, "y": sizes(0, 0, 4, 16)}),
    "Resize": (
        node("Resize", "x,,s", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"x": IMAGE, "s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Sigmoid": (node("Sigmoid", "x"), {"x": X * 4}),
    "Sin": (node("Sin", "x"), {"x": normal(2, 32, scale=300)}),
    "SkipLayerNormalization": (
        node("SkipLayerNormalization", "x,y,g,b", epsilon=1e-5),
        {"x": X, "y": normal(2, 24, 64), "g": normal(64), "b": normal(64)},
    ),
    "Slice": (node("Slice", "x,from,to,axes"), {"x": X, "from": sizes(8), "to": sizes(60), "axes": sizes(2)}),
    "Softmax": (node("Softmax", "x"), {"x": normal(2, 4, 24, 256, scale=3)}),
    "Softmax behind a mask": (node("Softmax", "x"), {"x": normal(2, 4, 24, 24) + np.triu(np.full((24, 24), -65504, np.float32), 1)}),
    "Split": (node("Split", "x", axis=-1, num_outputs=2), {"x": X}),
    "Sub": (node("Sub", "x,y"), {"x": X, "y": normal(64)}),
    "Transpose": (node("Transpose", "x", perm=[0, 2, 3, 1]), {"x": IMAGE}),
    "Transpose of heads": (node("Transpose", "x", perm=[0, 2, 1, 3]), {"x": normal(2, 24, 4, 16)}),
    "Trilu": (node("Trilu", "x", upper=1), {"x": normal(24, 24)}),
    "Unsqueeze": (node("Unsqueeze", "x,y"), {"x": X, "y": sizes(1)}),
    "Where": (node("Where", "c,x,y"), {"c": RNG.random((24, 24)) < 0.5, "x": normal(24, 24), "y": normal(24, 24)}),
}
CONTRIB = {"MatMulNBits", "QuickGelu", "SkipLayerNormalization"}
EXACT = {
    "ArgMax",
    "Cast",
    "Concat",
    "Equal",
    "Gather",
    "GatherElements",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Transpose",
    "Transpose of heads",
}
EXACT |= {"Trilu", "Unsqueeze", "Where"}
SHAPES = {"ConstantOfShape", "Expand", "Range", "Shape", "Squeeze"}
"""Operators that compute sizes; the provider leaves some of them to the CPU by design."""
MEASURED = {name.split(",")[0].split(" ")[0] for name in CASES} | SHAPES


def model(name: str, half: bool) -> tuple[bytes, dict[str, Array]]:
    """The graph of a case, and its feeds. With `half`, every float is float16, but scales of a Resize."""
    (kind, inputs, attributes), given = CASES[name]
    whole = {"s"} if kind == "Resize" else set[str]()
    feeds = {
        key: value.astype(np.float16) if half and value.dtype == np.float32 and key not in whole else value for key, value in given.items()
    }
    constant = {key for key in feeds if kind in {"Pad", "Resize", "Slice", "Reshape", "Unsqueeze"} and key != "x"} | (
        {"w", "s"} & feeds.keys()
    )
    outputs = ["z", "z2"] if kind == "Split" else ["z"]
    made = helper.make_node(kind, inputs, outputs, domain=MICROSOFT if kind in CONTRIB else "", **attributes)
    kinds = {key: helper.np_dtype_to_tensor_dtype(value.dtype) for key, value in feeds.items()}
    graph = helper.make_graph(
        [made],
        "one",
        [helper.make_tensor_value_info(key, kinds[key], value.shape) for key, value in feeds.items() if key not in constant],
        [onnx.ValueInfoProto(name=output) for output in outputs],
        [onnx.numpy_helper.from_array(feeds[key], key) for key in constant],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    if not inferred.graph.output[0].type.HasField("tensor_type"):  # a contrib operator
        del inferred.graph.output[:]
        inferred.graph.output.extend([helper.make_tensor_value_info(output, kinds["x"], None) for output in outputs])
    return inferred.SerializeToString(), {key: value for key, value in feeds.items() if key not in constant}


def run(data: bytes, feeds: Mapping[str, Array], prepare: Callable[[Any], None], names: list[str]) -> Array:
    ort = onnxruntime()
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    prepare(settings)
    return np.asarray(ort.InferenceSession(data, settings, providers=names or None).run(None, dict(feeds))[0], np.float64)


def on_webgpu(settings: Any) -> None:
    settings.log_severity_level = 4
    settings.add_provider_for_devices(plugins.plugin_devices(WEBGPU)[:1], {})


def db(expected: Array, found: Array) -> float:
    return 10 * np.log10(max(np.square(expected).sum(), 1e-30) / max(np.square(expected - found).sum(), 1e-30))


@needs_webgpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_webgpu_computes_an_operator_as_the_cpu_does(name: str, half: bool) -> None:
    data, feeds = model(name, half)
    expected = run(data, feeds, lambda _settings: None, ["CPUExecutionProvider"])
    found = run(data, feeds, on_webgpu, [])
    assert found.shape == expected.shape
    if name in EXACT:
        np.testing.assert_array_equal(found, expected)
    else:  # float16 sums of products lose bits with their number
        assert db(expected, found) >= (40 if half else 110)
