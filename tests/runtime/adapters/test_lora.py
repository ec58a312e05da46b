"""LoRA files and merged weights: names, formats, refusals, and merging in int8."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from diffusette.export.graphs import save
from diffusette.export.graphs.run_in_pieces import Pieces
from diffusette.export.quantization import quantize, ranges
from diffusette.export.runtime_bridge import open_graph
from diffusette.models.errors import BundleError, DiffusetteError, RequestError
from diffusette.models.formats import onnx_reader
from diffusette.runtime.adapters import lora, lora_names, merge_weights
from diffusette.runtime.adapters.lora_names import Place
from diffusette.runtime.engine.providers import resolve
from diffusette.runtime.engine.session import SessionOptions, open_session
from tests.support import small_graphs

RNG = np.random.default_rng(3)
MODULES = {
    "unet": {"down_blocks.0.attn1.to_q", "down_blocks.0.attn1.to_out.0", "conv_in"},
    "text_encoder": {"text_model.encoder.layers.0.mlp.fc1"},
}
PLACES = lora_names.places(MODULES)
QUERY = Place("unet", "down_blocks.0.attn1.to_q")
KOHYA = "lora_unet_down_blocks_0_attn1_to_q"


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def pair(name: str, ends: tuple[str, str] = ("lora_down", "lora_up"), rank: int = 2) -> dict[str, np.ndarray]:
    return {f"{name}.{ends[0]}.weight": normal(rank, 8), f"{name}.{ends[1]}.weight": normal(6, rank)}


def saved(folder: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: np.asarray(array) for name, array in tensors.items()}, folder / "style.safetensors", metadata)
    return folder / "style.safetensors"


@pytest.mark.parametrize(
    ("stem", "ends", "module"),
    [
        ("lora_unet_down_blocks_0_attn1_to_q", ("lora_down", "lora_up"), "down_blocks.0.attn1.to_q"),
        ("unet.down_blocks.0.attn1.to_out.0", ("lora_A", "lora_B"), "down_blocks.0.attn1.to_out.0"),
        ("base_model.model.conv_in", ("lora_A.default", "lora_B.default"), "conv_in"),
        ("unet.down_blocks.0.attn1.processor.to_q_lora", ("down", "up"), "down_blocks.0.attn1.to_q"),
        ("down_blocks.0.attn1.processor.to_out_lora", ("down", "up"), "down_blocks.0.attn1.to_out.0"),
        ("unet.down_blocks.0.attn1.to_q.lora", ("down", "up"), "down_blocks.0.attn1.to_q"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", ("lora_down", "lora_up"), "text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", ("lora_down", "lora_up"), "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", ("lora_A", "lora_B"), "text_model.encoder.layers.0.mlp.fc1"),
        ("text_encoder.encoder.layers.0.mlp.fc1.lora_linear_layer", ("down", "up"), "text_model.encoder.layers.0.mlp.fc1"),
        ("lora_unet_input_blocks_0_0", ("lora_down", "lora_up"), "conv_in"),
        ("diffusion_model.input_blocks.0.0", ("lora_A", "lora_B"), "conv_in"),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
            ("lora_down", "lora_up"),
            "text_model.encoder.layers.0.mlp.fc1",
        ),
    ],
)
def test_every_naming_scheme_is_understood(tmp_path: Path, stem: str, ends: tuple[str, str], module: str) -> None:
    tensors = pair(stem, ends)
    read = lora.read(saved(tmp_path, tensors), PLACES)
    ((place, change),) = read.changes.items()
    assert place.module == module
    assert read.notes == ()
    down, up = tensors.values()
    np.testing.assert_allclose(change.delta((6, 8)), up @ down, rtol=1e-6)


@pytest.mark.parametrize("transformers", [(1, 1, 1), (0, 2, 10)], ids=["sd1", "sdxl"])
def test_names_of_the_original_code_map_to_the_same_layers_as_in_diffusers(transformers: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            transformer_layers_per_block=[max(1, count) for count in transformers],
            down_block_types=["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in transformers],
            up_block_types=["CrossAttnUpBlock2D" if count else "UpBlock2D" for count in reversed(transformers)],
        )
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    originals = lora_names.original_names(names)
    assert set(originals) == set(names)
    judged = {name: key for name, key in originals.items() if "_embedding" not in name and not name.startswith("conv_")}
    for name, original in judged.items():
        key = f"lora_unet_{lora_names.flat(original)}"
        (found,) = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers({key: 0}, model.config)
        wanted, got = (lora_conversion_utils._convert_unet_lora_key(one) for one in (f"lora_unet_{lora_names.flat(name)}", found))
        assert got == wanted, original


def test_alpha_and_pefts_configuration_scale_the_change(tmp_path: Path) -> None:
    tensors = pair(KOHYA, rank=4)
    down, up = tensors.values()
    plain = lora.read(saved(tmp_path, tensors), PLACES).changes[QUERY]
    assert plain.scale == 1.0
    halved = lora.read(saved(tmp_path, {**tensors, f"{KOHYA}.alpha": np.float32(2)}), PLACES).changes[QUERY]
    np.testing.assert_allclose(halved.delta((6, 8)), 0.5 * (up @ down), rtol=1e-6)
    for said, scale in (
        ({"unet.r": 4, "unet.lora_alpha": 8}, 2.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 1}}, 0.25),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": "much"}, 1.0),
        ([], 1.0),
    ):
        read = lora.read(saved(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(said)}), PLACES)
        assert read.changes[QUERY].scale == scale


def test_a_convolution_changes_like_its_low_rank_branch(tmp_path: Path) -> None:
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(6, 8, 3, 3)
    down, middle, up = torch.randn(2, 8, 3, 3), torch.randn(2, 2, 3, 3), torch.randn(6, 2, 1, 1)
    convolve = torch.nn.functional.conv2d
    plain = {"conv_in.lora_down.weight": down.numpy(), "conv_in.lora_up.weight": up.numpy()}
    tucker = {**plain, "conv_in.lora_down.weight": down[:, :, :1, :1].contiguous().numpy(), "conv_in.lora_mid.weight": middle.numpy()}
    branches = (convolve(convolve(x, down), up), convolve(convolve(convolve(x, down[:, :, :1, :1]), middle), up))
    for tensors, branch in zip((plain, tucker), branches, strict=True):
        change = lora.read(saved(tmp_path, tensors), PLACES).changes[Place("unet", "conv_in")]
        assert change.fits((6, 8, 3, 3))
        merged = weight + torch.from_numpy(change.delta((6, 8, 3, 3)))
        torch.testing.assert_close(convolve(x, merged), convolve(x, weight) + branch, rtol=1e-4, atol=1e-4)


def test_loha_is_the_product_of_two_low_rank_matrices(tmp_path: Path) -> None:
    parts = {"w1_a": normal(6, 2), "w1_b": normal(2, 72), "w2_a": normal(6, 3), "w2_b": normal(3, 72)}
    tensors = {f"conv_in.hada_{part}": array for part, array in parts.items()}
    change = lora.read(saved(tmp_path, {**tensors, "conv_in.alpha": np.float16(1)}), PLACES).changes[Place("unet", "conv_in")]
    assert change.fits((6, 8, 3, 3))
    assert not change.fits((6, 9, 3, 3))
    expected = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"]) / 2
    np.testing.assert_allclose(change.delta((6, 8, 3, 3)), expected.reshape(6, 8, 3, 3), rtol=1e-5)
    a, b, core = (normal(2, 6), normal(2, 6)), (normal(2, 8), normal(2, 8)), (normal(2, 2, 3, 3), normal(2, 2, 3, 3))
    halves = [sum(np.multiply.outer(np.outer(a[n][i], b[n][j]), core[n][i, j]) for i in range(2) for j in range(2)) for n in range(2)]
    names = ("w1_a", "w1_b", "t1", "w2_a", "w2_b", "t2")
    tensors = {f"conv_in.hada_{part}": array for part, array in zip(names, (a[0], b[0], core[0], a[1], b[1], core[1]), strict=True)}
    change = lora.read(saved(tmp_path, tensors), PLACES).changes[Place("unet", "conv_in")]
    np.testing.assert_allclose(change.delta((6, 8, 3, 3)), halves[0] * halves[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("key", "shape"), [("dora_scale", (6, 1)), ("dora_scale", (1, 8)), ("lora_magnitude_vector.weight", (6,))])
def test_a_dora_sets_the_norms_of_the_changed_weight(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    magnitude, weight = np.abs(normal(*shape)) + 1, normal(6, 8)
    tensors = pair(KOHYA)
    change = lora.read(saved(tmp_path, {**tensors, f"{KOHYA}.{key}": magnitude}), PLACES).changes[QUERY]
    changed = torch.from_numpy(weight + change.delta((6, 8), lambda: weight))
    direction = torch.from_numpy(weight + tensors[UP] @ tensors[DOWN])
    axis = 0 if shape[0] == 1 else 1  # the paper, with torch's own normalization as the judge
    expected = torch.nn.functional.normalize(direction, dim=axis) * torch.from_numpy(magnitude).reshape((1, 8) if axis == 0 else (6, 1))
    np.testing.assert_allclose(changed, expected, rtol=1e-5, atol=1e-6)


def test_unknown_tensors_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    tensors = {**pair(KOHYA), **pair("lora_unet_nowhere"), f"{KOHYA}.diff_b": normal(6)}
    read = lora.read(saved(tmp_path, tensors), PLACES)
    assert set(read.changes) == {QUERY}
    assert [note.split(": ")[-1] for note in read.notes] == ["lora_unet_nowhere", f"{KOHYA}.diff_b"]


UP, DOWN = f"{KOHYA}.lora_up.weight", f"{KOHYA}.lora_down.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "not a LoRA"),
        ({"model.weight": normal(3)}, r"not a LoRA \(it has model.weight"),
        (pair("lora_unet_elsewhere"), r"none of its layers is in this model \(lora_unet_elsewhere\)"),
        ({**pair(KOHYA), f"{KOHYA}.dora_scale": normal(5, 1)}, "dora_scale is float32 of shape"),
        ({**pair(KOHYA), **pair("unet." + QUERY.module, ("lora_A", "lora_B"))}, "are the same layer"),
        ({UP: normal(6, 2)}, "has up; expected up and down"),
        ({f"{KOHYA}.alpha": np.float32(1)}, "only alpha"),
        ({**pair(KOHYA), f"{KOHYA}.alpha": normal(2)}, "alpha is float32 of shape"),
        ({**pair(KOHYA), f"{KOHYA}.alpha": np.float32(np.nan)}, "expected one finite number"),
        ({UP: normal(6, 3), DOWN: normal(2, 8)}, "do not match"),
        ({UP: normal(6, 2, 3, 3), DOWN: normal(2, 8, 3, 3)}, "do not match"),
        ({UP: np.ones((6, 2), np.int8), DOWN: normal(2, 8)}, "up is int8"),
        ({UP: np.zeros((6, 0), np.float32), DOWN: np.zeros((0, 8), np.float32)}, "expected floats"),
        ({UP: normal(6), DOWN: normal(8)}, "two or four dimensions"),
        ({f"conv_in.hada_{part}": normal(2, 3) for part in ("w1_a", "w1_b", "w2_a")}, "expected up and down, or w1_a, w1_b, w2_a and w2_b"),
        ({f"conv_in.hada_{part}": normal(2, 3) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}, "do not match"),
        ({UP: normal(6, 2), DOWN: normal(2, 8), f"{KOHYA}.lokr_w1": normal(2, 4)}, "has down, up, w1; expected up and down, or"),
    ],
)
def test_an_inconsistent_file_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        lora.read(saved(tmp_path, tensors), PLACES)
    assert str(caught.value).startswith(str(tmp_path / "style.safetensors"))


def test_a_hostile_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, pair(KOHYA))
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole[:40], pickle.dumps({"a": 1}) * 9, b"<!doctype html><html></html>"):
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"style\.safetensors"):
            lora.read(path, PLACES)
    with pytest.raises(BundleError, match="no such file"):
        lora.read(tmp_path / "none.safetensors", PLACES)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_nan_and_inf_are_refused_when_they_are_added(tmp_path: Path, value: float) -> None:
    tensors = {UP: np.full((6, 2), value, np.float32), DOWN: np.full((2, 8), 2, np.float32)}
    change = lora.read(saved(tmp_path, tensors), PLACES).changes[QUERY]
    with pytest.raises(RequestError, match="NaN, Inf or numbers beyond float32"):
        change.delta((6, 8))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_float_weight_becomes_the_sum_in_its_own_type_and_layout(tmp_path: Path, dtype: str) -> None:
    arrays = {
        "linear.weight": normal(8, 6).astype(dtype),
        "conv.weight": normal(6, 8, 3, 3).astype(dtype),
        "tokens_embedding.weight": normal(4, 4),
    }
    node = helper.make_node("Identity", ["x"], ["y"])
    path = small_graphs.save(small_graphs.model([node], {"x": (1, [1])}, {"y": (1, [1])}, arrays), tmp_path / "model.onnx")
    initializers = onnx_reader.read(path).initializers
    assert merge_weights.modules(initializers) == {"linear", "conv"}
    for module, shape in (("linear", (6, 8)), ("conv", (6, 8, 3, 3))):
        assert merge_weights.shape_of(initializers, module) == shape
        delta = normal(*shape)
        ((name, found),) = merge_weights.added(path, initializers, module, delta).items()
        own = delta.T if module == "linear" else delta
        np.testing.assert_array_equal(found, (arrays[name].astype(np.float32) + own).astype(dtype))
        assert found.dtype == dtype
    if dtype == "float16":
        with pytest.raises(RequestError, match="exceed float16"):
            merge_weights.added(path, initializers, "linear", np.full((6, 8), 1e5, np.float32))


def test_a_change_is_scaled_like_the_channels_that_export_scaled(tmp_path: Path) -> None:
    weight, delta, out, into = normal(6, 8), normal(6, 8), normal(6), normal(8)
    arrays = {"l.weight": ((weight * out[:, None]) * into).T.copy(), "l.output_factors": out, "l.input_factors": into}
    node = helper.make_node("Identity", ["x"], ["y"])
    path = small_graphs.save(small_graphs.model([node], {"x": (1, [1])}, {"y": (1, [1])}, arrays), tmp_path / "model.onnx")
    found = merge_weights.added(path, onnx_reader.read(path).initializers, "l", delta)["l.weight"]
    np.testing.assert_allclose(found.T, (weight + delta) * out[:, None] * into, rtol=1e-4, atol=1e-5)


def test_requantizing_keeps_unchanged_rows_and_scales_that_still_cover_the_values() -> None:
    quantized, scale = RNG.integers(-127, 128, (4, 50)).astype(np.int8), np.array([0.01, 0.02, 0.5, 1e-6], np.float32)
    real = quantized * scale[:, None]
    real[1] *= 3
    found, fitted = merge_weights.quantized_again(real, 0, scale)
    np.testing.assert_array_equal(found[[0, 2, 3]], quantized[[0, 2, 3]])
    np.testing.assert_array_equal(fitted[[0, 2, 3]], scale[[0, 2, 3]])
    assert np.abs(found[1] * fitted[1] - real[1]).max() <= 0.51 * fitted[1]


def snr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize("form", ["operators", "qdq"])
def test_int8_layers_stay_near_the_float_merge(tmp_path: Path, form: quantize.Form) -> None:
    shapes = {"conv": (32, 16, 3, 3), "linear": (48, 32), "only": (32, 48)}
    arrays = {
        f"{name}.weight": normal(*shape, scale=0.1) if len(shape) == 4 else normal(*shape, scale=0.1).T.copy()
        for name, shape in shapes.items()
    }
    arrays |= {"conv.bias": normal(32), "linear.bias": normal(48), "rows": np.array([1, 32, -1])}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Reshape", ["c", "rows"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "linear.weight"], ["m"]),
        helper.make_node("Add", ["m", "linear.bias"], ["a"]),
        helper.make_node("MatMul", ["a", "only.weight"], ["y"]),
    ]
    proto = small_graphs.model(nodes, {"x": (TensorProto.FLOAT, [1, 16, 8, 8])}, {"y": (TensorProto.FLOAT, [1, 64, 32])}, arrays)
    plain = small_graphs.save(proto, tmp_path / "plain/model.onnx")
    kinds = {"conv": "int8", "linear": "int8", "only": "weights"}
    feeds = [{"x": normal(1, 16, 8, 8)} for _ in range(8)]
    model = ir.load(plain)
    names = quantize.wanted_tensors(model, kinds.__getitem__)
    save.save(model, tmp_path / "observed")
    seen, _ = ranges.observe(Pieces(tmp_path / "observed", open_graph, watched=names), names, feeds)
    calibration = quantize.Calibration(seen)
    save.save(quantize.quantize(ir.load(plain), kinds.__getitem__, calibration, form)[0], tmp_path / "small")
    small = tmp_path / "small" / save.GRAPH
    assert merge_weights.modules(onnx_reader.read(small).initializers) == set(shapes)
    delta = {name: normal(shape[0], 4, scale=0.05) @ normal(4, int(np.prod(shape[1:])), scale=0.5) for name, shape in shapes.items()}

    def outputs(path: Path, weight: float) -> np.ndarray:
        initializers = onnx_reader.read(path).initializers
        changed: dict[str, Any] = {}
        for name, shape in shapes.items() if weight else ():
            changed |= merge_weights.added(path, initializers, name, delta[name].reshape(shape) * np.float32(weight))
        session = open_session(path, resolve("cpu"), SessionOptions(weights=changed, threads=1))
        return np.concatenate([session.run(feed)["y"] for feed in feeds])

    before, after = (snr(outputs(small, weight), outputs(plain, weight)) for weight in (0.0, 0.5))
    assert before > 30
    assert after > before - 4
    assert snr(outputs(plain, 0.5), outputs(plain, 0.0)) < 15  # the LoRA is a strong one


def test_an_adapter_raises_only_errors_that_the_command_line_handles(tmp_path: Path) -> None:
    path = saved(tmp_path, pair(KOHYA))
    whole = bytearray(path.read_bytes())
    for at in range(0, len(whole), 7):
        broken = whole.copy()
        broken[at] ^= 0x15
        path.write_bytes(broken)
        try:
            read = lora.read(path, PLACES)
            for change in read.changes.values():
                if change.fits((6, 8)):
                    change.delta((6, 8))
        except DiffusetteError:
            continue


def lokr(name: str, *, rank: int = 2, conv: bool = False) -> dict[str, np.ndarray]:
    kernel = (3, 3) if conv else ()
    return {
        f"{name}.lokr_w1": normal(2, 4),
        f"{name}.lokr_w2_a": normal(3, rank),
        f"{name}.lokr_w2_b": normal(rank, 2, *kernel),
        f"{name}.alpha": np.float32(4),
    }


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_a_lokr_is_the_kronecker_product_of_its_sides(tmp_path: Path, conv: bool) -> None:
    tensors = lokr(KOHYA, conv=conv)
    shape = (6, 8, 3, 3) if conv else (6, 8)
    (change,) = lora.read(saved(tmp_path, tensors), PLACES).changes.values()
    one, a, b, _ = tensors.values()
    two = torch.from_numpy(a @ b.reshape(2, -1)).reshape(3, *b.shape[1:])
    first = torch.from_numpy(one).reshape(2, 4, *(1,) * (two.ndim - 2))
    assert change.fits(shape)
    np.testing.assert_allclose(change.delta(shape), 2 * torch.kron(first, two).numpy(), rtol=1e-5)


def test_a_lokr_in_tucker_form_multiplies_its_core(tmp_path: Path) -> None:
    core, a, b, one = normal(2, 2, 3, 3), normal(2, 3), normal(2, 2), normal(2, 4)
    names = ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    tensors = {f"{KOHYA}.{name}": array for name, array in zip(names, (one, a, b, core), strict=True)}
    (change,) = lora.read(saved(tmp_path, tensors), PLACES).changes.values()
    two = sum(np.multiply.outer(np.outer(a[i], b[j]), core[i, j]) for i in range(2) for j in range(2))
    np.testing.assert_allclose(change.delta((6, 8, 3, 3)), np.kron(one[:, :, None, None], two), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "damage",
    [
        {"lokr_w2_b": normal(3, 2)},
        {"lokr_w1": normal(2, 4, 3, 3)},
        {"lokr_t2": normal(5, 5, 3, 3)},
        {"lokr_w2_a": normal(3, 2, 1, 1)},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_lokr_whose_shapes_do_not_match_is_refused(tmp_path: Path, damage: dict[str, np.ndarray]) -> None:
    tensors = lokr(KOHYA) | {f"{KOHYA}.{name}": array for name, array in damage.items()}
    with pytest.raises(RequestError, match="do not match; the file is damaged"):
        lora.read(saved(tmp_path, tensors), PLACES)


@pytest.mark.parametrize("missing", ["lokr_w1", "lokr_w2_a"])
def test_a_lokr_without_one_of_its_sides_is_refused(tmp_path: Path, missing: str) -> None:
    tensors = lokr(KOHYA)
    del tensors[f"{KOHYA}.{missing}"]
    with pytest.raises(RequestError, match="or w1 and w2 of a LoKr; the file is damaged"):
        lora.read(saved(tmp_path, tensors), PLACES)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a POSIX device")
def test_a_device_is_no_adapter_and_is_not_read() -> None:
    with pytest.raises(BundleError, match="a device; expected a safetensors file"):
        lora.sha256(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("emb_params", "textual inversion, given with --embedding"),
        ("lora_controlnet_input_hint_block_0.lora_down.weight", "ControlNet"),
        ("image_proj.proj.weight", "IP-Adapter"),
        ("down_blocks.0.motion_modules.0.proj_in.weight", "AnimateDiff"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("base_model.model.down_blocks.0.to_q.vera_lambda_b", "VeRA"),
        ("lora_unet_down_blocks_0.oft_blocks", "OFT"),
        ("lora_unet_down_blocks_0.on_input", "(IA)³"),
        ("lora_unet_down_blocks_0.b2.weight", "GLoRA"),
        ("lora_unet_down_blocks_0.diff", "weight differences"),
        ("320.0.linear.0.weight", "hypernetwork"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole checkpoint"),
        ("unet.down_blocks.0.to_q.lora_A.weight", ""),
    ],
)
def test_a_file_that_is_no_lora_is_called_what_it_is(name: str, what: str) -> None:
    assert what in lora_names.foreign_kind([name])
    assert bool(what) == bool(lora_names.foreign_kind([name]))
