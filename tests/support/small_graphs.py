"""Small ONNX graphs and a small bundle, written with the onnx package, for tests that open files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from diffusette.models import manifest as manifests
from diffusette.models.formats import onnx_reader
from diffusette.models.manifest import Component, Defaults, File, Latent, Manifest, Noise, Source, Tokenizer

RNG = np.random.default_rng(0)
WIDTH = 8


def model(
    nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, NDArray[Any]], **more: Any
) -> onnx.ModelProto:
    """A model; `inputs` and `outputs` are name → (TensorProto type, shape)."""
    domains = {node.domain for node in nodes} - {"", "ai.onnx"}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def save(proto: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    """Write `proto`; with `external`, its weights beside it in `<name>_data`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=0)
    return path


def linear(path: Path, *, external: bool = False, dtype: Any = np.float32) -> Path:
    """x (n, 8) → z = x @ w + b (n, 8); w all 1, b 0 to 7."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    weights = {"w": np.ones((WIDTH, WIDTH), dtype), "b": np.arange(WIDTH, dtype=dtype)}
    return save(model(nodes, {"x": (kind, ["n", WIDTH])}, {"z": (kind, ["n", WIDTH])}, weights), path, external=external)


def convolution(path: Path, *, external: bool = False, channels: int = 16) -> Path:
    """x (1, 16, h, w) → the same shape, through a 3×3 convolution and SiLU: ONNX Runtime reorders its weights when it optimizes."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("Mul", ["h", "s"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((channels, channels, 3, 3), np.float32) * 0.1, "b": rng.standard_normal(channels, np.float32)}
    shape = [1, channels, "h", "w"]
    return save(model(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, weights), path, external=external)


def endless(path: Path) -> Path:
    """x (8, 8), n scalar → x multiplied n times by a small matrix: a run of any length."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [WIDTH, WIDTH]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [WIDTH, WIDTH]),
        ],
    )
    nodes = [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)]
    weights = {"w": np.eye(WIDTH, dtype=np.float32), "yes": np.array(True)}
    inputs = {"x": (TensorProto.FLOAT, [WIDTH, WIDTH]), "n": (TensorProto.INT64, [])}
    return save(model(nodes, inputs, {"y": (TensorProto.FLOAT, [WIDTH, WIDTH])}, weights), path)


def zeros(path: Path) -> Path:
    """shape (k) → zeros of that shape: a run that needs any amount of memory."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["y"])
    return save(model([node], {"shape": (TensorProto.INT64, ["k"])}, {"y": (TensorProto.FLOAT, None)}, {}), path)


def plain_folder(folder: Path, *, ids: int = TensorProto.INT32, configs: bool = False, index: str = "OnnxStableDiffusionPipeline") -> Path:
    """An SD1-shaped model folder without a manifest: the older diffusers layout, or with `configs` optimum's."""
    rng = np.random.default_rng(2)
    table = rng.standard_normal((30, 768), np.float32)
    text = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        helper.make_node("ReduceMean", ["last_hidden_state", "one"], ["pooler_output"], keepdims=0),
    ]
    states = (TensorProto.FLOAT, ["batch", "sequence", 768])
    save(
        model(
            text,
            {"input_ids": (ids, ["batch", 77])},
            {"last_hidden_state": states, "pooler_output": (TensorProto.FLOAT, ["batch", 768])},
            {"table": table, "one": np.array([1])},
        ),
        folder / "text_encoder/model.onnx",
    )
    unet = [
        helper.make_node("Conv", ["sample", "w"], ["h"]),
        helper.make_node("ReduceMean", ["encoder_hidden_states"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["timestep"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["t"], ["t_mean"], keepdims=0),
        helper.make_node("Sum", ["h", "mean", "t_mean"], ["out_sample"]),
    ]
    latent = (TensorProto.FLOAT, ["batch", 4, "height", "width"])
    save(
        model(
            unet,
            {"sample": latent, "timestep": (TensorProto.INT64, ["batch"]), "encoder_hidden_states": states},
            {"out_sample": latent},
            {"w": rng.standard_normal((4, 4, 1, 1), np.float32)},
        ),
        folder / "unet/model.onnx",
        external=True,
    )
    decode = [
        helper.make_node("Conv", ["latent_sample", "w"], ["h"]),
        helper.make_node("Resize", ["h", "", "scales"], ["sample"], mode="nearest"),
    ]
    weights = {"w": rng.standard_normal((3, 4, 1, 1), np.float32), "scales": np.array([1, 1, 8, 8], np.float32)}
    image = (TensorProto.FLOAT, ["batch", 3, "height_out", "width_out"])
    save(model(decode, {"latent_sample": latent}, {"sample": image}, weights), folder / "vae_decoder/model.onnx")
    components: dict[str, list[str]] = {name: ["diffusers", "OnnxRuntimeModel"] for name in ("text_encoder", "unet", "vae_decoder")}
    if configs:
        components = {
            "text_encoder": ["transformers", "CLIPTextModel"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        write(folder / "unet/config.json", {"in_channels": 4, "sample_size": 64})
        write(folder / "text_encoder/config.json", {"max_position_embeddings": 77})
        write(folder / "vae_decoder/config.json", {"latent_channels": 4, "block_out_channels": [1, 2, 4, 8], "scaling_factor": 0.5})
    components |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "PNDMScheduler"]}
    write(folder / "model_index.json", {"_class_name": index, "_diffusers_version": "0.42.1"} | components)
    write(folder / "tokenizer/vocab.json", {"a": 0, "<|startoftext|>": 28, "<|endoftext|>": 29})
    write(folder / "tokenizer/special_tokens_map.json", {"pad_token": {"content": "<|endoftext|>"}})
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    write(folder / "scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler", "skip_prk_steps": True} | betas)
    return folder


def bundle(folder: Path) -> Path:
    """The graphs of `plain_folder` as a bundle with a manifest, target portable."""
    plain_folder(folder, ids=TensorProto.INT64)
    components: dict[str, Component] = {}
    for name in ("text_encoder", "unet", "vae_decoder"):
        graph = onnx_reader.read(folder / name / "model.onnx")
        components[name] = Component(f"{name}/model.onnx", "fp32", dict(graph.inputs), dict(graph.outputs))
    files = {
        path.relative_to(folder).as_posix(): File(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        family="sd1",
        target="portable",
        components=components,
        tokenizers={"tokenizer": Tokenizer("tokenizer", 77, 29)},
        noise=Noise(),
        latent=Latent(),
        defaults=Defaults(64, 64),
        source=Source("small"),
        files=files,
    )
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(manifest))
    return folder


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_manifest(folder: Path, *keys: str, value: object) -> None:
    """Set the field at `keys` of the manifest in `folder`; a value of None removes it."""
    path = folder / manifests.FILE_NAME
    manifest = json.loads(path.read_text())
    parent = manifest
    for key in keys[:-1]:
        parent = parent[key]
    if value is None:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = value
    path.write_text(json.dumps(manifest))


def relist(folder: Path, relative: str) -> None:
    """Update size and hash of the file `relative` in the manifest."""
    data = (folder / relative).read_bytes()
    edit_manifest(folder, "files", relative, value={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
