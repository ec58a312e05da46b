"""targets.py and export/tracing/merge_lora.py: the graphs of every target agree with torch, and LoRAs are in the weights."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from diffusette.export import runtime_bridge
from diffusette.export.export import Options, export_model
from diffusette.export.graphs import edit, parity, save
from diffusette.export.passes import contrib_functions
from diffusette.export.passes.half_precision import to_half
from diffusette.export.quantization.lower_precision import to_fp16, to_integers
from diffusette.export.quantization.quantize import FORMS
from diffusette.export.sources import diffusers_folder
from diffusette.export.targets import TARGETS
from diffusette.export.tracing import build, merge_lora, torch_reference, trace
from diffusette.models import manifest
from diffusette.models.bundle import read_manifest
from diffusette.models.errors import RequestError
from diffusette.models.formats import onnx_reader, safetensors_file
from diffusette.models.manifest import Component
from diffusette.runtime.pipeline import load
from tests.support import tiny_models
from tests.webgpu.test_operators import MEASURED


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return diffusers_folder.open_folder(tiny_models.save(tmp_path_factory.mktemp("targets") / "model", "sd1"))


@pytest.fixture(scope="module")
def parts(opened):
    """Name → (component, its traced graph, inputs, what torch gives)."""
    made = {}
    for name in ("text_encoder", "vae_decoder"):
        component = build.build(opened, name)
        feeds = torch_reference.cases(component)
        with torch_reference.loaded(component):
            made[name] = (component, trace.trace(component), feeds, torch_reference.references(component, feeds))
    return made


def written(parts, name, target, folder):
    """The graph of a component for `target`, written into `folder`."""
    model = edit.apply(parts[name][1].clone(), TARGETS[target])
    save.save(model, folder)
    return model


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_graph_for_every_target_agrees_with_torch(parts, name, target, tmp_path):
    model = written(parts, name, target, tmp_path)
    assert parity.compare(runtime_bridge.open_graph(tmp_path / save.GRAPH), *parts[name][2:]).db > parity.BARS["fp32"]
    assert edit.declined(model) == []


@pytest.mark.parametrize("target", ["portable", "openvino"])
def test_portable_graphs_are_plain_onnx_of_opset_18(parts, target, tmp_path):
    for name in parts:
        written(parts, name, target, tmp_path / name)
        proto = onnx.load(tmp_path / name / save.GRAPH)
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        assert {node.domain for node in proto.graph.node} == {""}
        assert {(one.domain, one.version) for one in proto.opset_import} == {("", 18)}


def test_a_portable_u_net_takes_one_time_for_all_pictures_of_a_batch(tmp_path):
    component = build.build(diffusers_folder.open_folder(tiny_models.save(tmp_path / "model", "sdxl")), "unet")
    save.save(edit.apply(trace.trace(component), TARGETS["portable"]), tmp_path / "unet")
    session, feed = runtime_bridge.open_graph(tmp_path / "unet" / save.GRAPH), torch_reference.cases(component)[1]
    each, all_ = (session.run(feed | {"timestep": np.full(count, 500, np.float32)})["out_sample"] for count in (4, 1))
    np.testing.assert_allclose(all_, each, rtol=1e-5, atol=1e-6)


def test_time_embeddings_turn_by_the_same_angles_as_torchs_to_the_bit(tmp_path):
    component = build.build(diffusers_folder.open_folder(tiny_models.save(tmp_path / "model", "sdxl")), "unet")
    angles = [node.inputs[0].producer() for node in trace.trace(component).graph if node.op_type == "Sin"]
    assert len(angles) == 2  # of the step, and of SDXL's sizes
    for time, angle in zip((999.0, 1024.0), angles, strict=True):
        frequencies = next(value.const_value.numpy() for value in angle.inputs if value.const_value is not None)
        expected = get_timestep_embedding(torch.tensor([time]), 2 * frequencies.size, flip_sin_to_cos=False, downscale_freq_shift=0)
        assert torch.equal(torch.sin(torch.from_numpy(frequencies).reshape(1, -1) * time), expected[:, : frequencies.size])


_DIRECTML = """
7 13 14: Add Div Mul Sub
4 11 13: Concat
1 6 9 13: Erf MatMul Sigmoid Sqrt
1 13 15: Shape
1 2 11 13: Softmax Split Squeeze Unsqueeze
1 10 11 13: Gather GatherElements Slice
7 9 11 13: Equal Gemm Greater Less
1 11 12 13: ArgMax
6 9 13: Cast
1 11: Conv
8 13: Expand
1 13 14 16: Identity
5 13 14: Reshape
10 11 13: Resize
1 13: Transpose
9 16: Where
1 17: LayerNormalization
6: InstanceNormalization
7: Cos Sin
9: ConstantOfShape
11: Range
14: Trilu
1: com.microsoft.Gelu com.microsoft.GroupNorm com.microsoft.MultiHeadAttention com.microsoft.QuickGelu
"""
DIRECTML = {name: set(map(int, line.split(":")[0].split())) for line in _DIRECTML.split("\n")[1:-1] for name in line.split(":")[1].split()}
"""Operator → the opsets from which DirectML has a kernel in half and float32, of those that our graphs could use: ONNX Runtime's
docs/OperatorKernels.md, "Operators implemented by DmlExecutionProvider"."""


def test_directml_graphs_have_only_operators_that_directml_runs_at_opset_17(parts, tmp_path):
    for name in parts:
        model = written(parts, name, "directml", tmp_path / name)
        contrib_functions.release(tmp_path / name / save.GRAPH)
        assert model.graph.opset_imports[""] == 17
        for node in onnx.load(tmp_path / name / save.GRAPH).graph.node:
            since = 1 if node.domain else onnx.defs.get_schema(node.op_type, max_inclusive_version=17).since_version
            assert since in DIRECTML.get(f"{node.domain}.{node.op_type}".removeprefix("."), ()), node.op_type


def test_webgpu_graphs_have_only_operators_that_were_measured_on_webgpu(opened, parts, tmp_path):
    traced = {name: part[1].clone() for name, part in parts.items()} | {"unet": trace.trace(build.build(opened, "unet"))}
    for name, model in traced.items():
        save.save(edit.apply(model, TARGETS["webgpu"]), tmp_path / name)
        contrib_functions.release(tmp_path / name / save.GRAPH)
        found = {node.op_type for node in onnx.load(tmp_path / name / save.GRAPH, load_external_data=False).graph.node}
        assert {"MatMul", "SkipLayerNormalization" if name != "vae_decoder" else "InstanceNormalization"} <= found
        assert found - MEASURED == set()


def test_free_dimensions_keep_their_names_in_every_graph(parts, tmp_path):
    for name, (component, *_) in parts.items():
        for target in TARGETS:
            written(parts, name, target, tmp_path / name / target)
            proto = onnx.load(tmp_path / name / target / save.GRAPH)
            for value, port in zip(proto.graph.input, component.inputs, strict=True):
                assert tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim) == port.shape


def test_nothing_of_this_machine_stands_in_a_graph(parts, tmp_path):
    for name in parts:
        written(parts, name, "cpu", tmp_path)
        data = (tmp_path / save.GRAPH).read_bytes()
        for word in (b"site-packages", b"torch", b".py", b"home"):
            assert word not in data, word


@pytest.mark.parametrize("target", FORMS)
def test_eight_bit_graphs_for_every_target_that_has_them_agree_with_float(parts, target, tmp_path):
    written(parts, "vae_decoder", target, tmp_path / "float")
    made = Component("unet/model.onnx", "fp32", {}, {}, 120.0)
    feeds = parts["vae_decoder"][2]  # the recipe of the U-Net, so that convolutions become 8 bit
    found = to_integers("unet", tmp_path / "float", tmp_path / "made", feeds, made, parity.BARS["int8"], FORMS[target])
    assert found.component.parity_db >= parity.BARS["int8"]
    kinds = {node.op_type for node in save.load(tmp_path / "made").graph}
    assert ("QLinearConv" in kinds) == (target == "cpu")
    assert "DequantizeLinear" in kinds


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder"])
@pytest.mark.parametrize("target", ["cuda", "directml"])
def test_half_precision_agrees_with_float_and_keeps_float_at_the_border(parts, name, target, tmp_path):
    written(parts, name, target, tmp_path / "float")
    inputs = {port.name: manifest.Tensor(port.dtype, port.shape) for port in parts[name][0].inputs}
    made = Component(f"{name}/model.onnx", "fp32", inputs, {}, 120.0)
    found = to_fp16(name, tmp_path / "float", tmp_path / "made", parts[name][2], made, parity.BARS["fp16"])
    assert (found.component.precision, found.note) == ("fp16", "")
    model = save.load(tmp_path / "made")
    assert all(value.dtype in {ir.DataType.FLOAT, ir.DataType.INT64} for value in (*model.graph.inputs, *model.graph.outputs))
    floats = [value.name for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT and len(value.shape) > 1]
    assert floats == []


def test_a_portable_export_in_half_precision_has_standard_operators_only(tmp_path):
    made = export_model(tiny_models.save(tmp_path / "model", "sd1"), tmp_path / "bundle", Options("portable", "fp16", prompts=("a cat",)))
    for name, component in made.manifest.components.items():
        stored = onnx_reader.read(tmp_path / "bundle" / component.graph)
        assert component.precision == "fp16", name
        assert component.parity_db >= parity.BARS["fp16"]
        assert {domain for domain, _ in stored.operators} == {""}
    with load(tmp_path / "bundle") as drawer:
        assert drawer.generate("a cat", steps=2, seed=1).images[0].getbbox() is not None


def small(nodes, weights, outputs=("y",)):
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def test_what_half_cannot_hold_stays_float_and_that_is_said(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["big"]),
        helper.make_node("Mul", ["big", "tiny"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    weights = {"w": np.full((4, 4), 5e4, np.float32), "tiny": np.float32(1e-5), "b": np.ones(4, np.float32)}
    save.save(small(nodes, weights), tmp_path / "float")
    made = Component("unet/model.onnx", "fp32", {}, {}, 120.0)
    feeds = [{"x": np.arange(8, dtype=np.float32).reshape(2, 4)}]
    found = to_fp16("unet", tmp_path / "float", tmp_path / "made", feeds, made, 45.0)
    assert found.component.precision == "fp16"
    assert found.note.startswith("unet: 1 tensors are too large for half precision")


def test_a_component_that_half_precision_spoils_stays_float_and_that_is_said(tmp_path):
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Sub", ["a", "w"], ["y"])]
    save.save(small(nodes, {"w": np.full(4, 3000, np.float32)}), tmp_path / "float")
    made = Component("unet/model.onnx", "fp32", {}, {}, 120.0)
    feeds = [{"x": np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)}]
    found = to_fp16("unet", tmp_path / "float", tmp_path / "made", feeds, made, 45.0)
    assert found.component == made
    assert "it stays float32" in found.note
    assert not (tmp_path / "made").exists()


def test_an_export_to_half_precision_keeps_what_it_would_spoil_in_float_and_says_what_stood_for_gpu_operators(tmp_path):
    folder = tiny_models.save(tmp_path / "model", "sd1")
    file = next((folder / "text_encoder").glob("*.safetensors"))
    with safetensors_file.open_weights(file) as opened:
        changed = {name: opened.read(name) for name in opened}
    embedding = next(array for name, array in changed.items() if name.endswith("token_embedding.weight"))
    embedding += 60 * embedding.std()  # half precision has few bits beside it; the norms after it take it away again
    safetensors_file.save_weights(file, changed)
    made = export_model(folder, tmp_path / "bundle", Options("cuda", "fp16", prompts=("a red apple",)))
    said = {name: component.precision for name, component in read_manifest(tmp_path / "bundle").components.items()}
    assert said == {"text_encoder": "fp32", "unet": "fp16", "vae_encoder": "fp16", "vae_decoder": "fp16"}
    assert any("text_encoder: half precision gives" in one and "it stays float32" in one for one in made.warnings)
    report = json.loads((tmp_path / "bundle/report.json").read_text())["components"]
    assert "it stays float32" in report["text_encoder"]["note"]
    for name, component in made.manifest.components.items():
        stored = onnx_reader.read(tmp_path / "bundle" / component.graph)
        gpu = {operator for _, operator in stored.operators} & contrib_functions.KERNELS
        assert set(component.judged_as_functions) == gpu == set(report[name].get("judged_as_functions", ()))
    assert "GroupNorm" in made.manifest.components["unet"].judged_as_functions


def test_the_sines_of_a_timestep_and_what_leads_to_them_stay_float(tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["t"]),
        helper.make_node("Sin", ["t"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    model = small(nodes, {"f": np.array([1, 0.1, 0.01, 0.001], np.float32), "w": np.eye(4, dtype=np.float32)})
    save.save(model, tmp_path / "float")
    save.save(to_half(model), tmp_path / "half")
    feed = {"x": np.full((1, 4), 977.0, np.float32)}
    got, expected = (runtime_bridge.open_graph(tmp_path / place / save.GRAPH).run(feed)["y"] for place in ("half", "float"))
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert model.graph.initializers["f"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT16


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 2 with kohya's names for one layer of the U-Net and one of the text encoder."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, rows, columns in (
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 16, 16),
        ("lora_te_text_model_encoder_layers_1_mlp_fc1", 48, 32),
    ):
        tensors |= {
            f"{name}.lora_up.weight": rng.standard_normal((rows, 2), np.float32),
            f"{name}.lora_down.weight": rng.standard_normal((2, columns), np.float32),
            f"{name}.alpha": np.float32(1.0),
        }
    save_file({name: np.atleast_1d(value) if value.ndim == 0 else value for name, value in tensors.items()}, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors", tensors


@pytest.mark.parametrize(
    ("component", "layer", "stem"),
    [
        (
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc1", "lora_te_text_model_encoder_layers_1_mlp_fc1"),
    ],
)
def test_a_lora_is_added_to_the_weights_of_its_layers_and_to_no_others(opened, lora, component, layer, stem):
    path, tensors = lora
    plain = build.build(opened, component)
    merged = merge_lora.merge(plain, opened, [merge_lora.Lora(path, 0.5), merge_lora.Lora(path, 0.25)])
    delta = tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"] * (1.0 / 2)
    for key in plain.weights.shapes:
        expected = plain.weights.read(key) + (0.75 * delta if key == f"{layer}.weight" else 0)
        np.testing.assert_allclose(merged.weights.read(key), expected, rtol=1e-5, atol=1e-6, err_msg=key)


def test_a_lora_for_another_architecture_is_refused(opened, tmp_path):
    save_file(
        {
            "lora_unet_elsewhere.lora_up.weight": np.ones((2, 2), np.float32),
            "lora_unet_elsewhere.lora_down.weight": np.ones((2, 2), np.float32),
        },
        tmp_path / "x.safetensors",
    )
    with pytest.raises(RequestError, match="none of its layers is in this model"):
        merge_lora.merge(build.build(opened, "unet"), opened, [merge_lora.Lora(tmp_path / "x.safetensors")])
