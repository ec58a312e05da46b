"""Model folders without a manifest: optimum's ONNX layout, and the older one of diffusers.

Both are a diffusers folder whose components hold `model.onnx`: optimum's has a `config.json` beside each, the older one
(`OnnxStableDiffusionPipeline`) has none, so that there the graph itself must say what it is. Class names are compared with
lists; nothing is imported by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import UNSET

from .. import families
from ..errors import BundleError
from ..manifest import Component, Latent, Manifest, Noise, Precision, Source, Target, Tokenizer
from . import clip_vocabulary, model_config, onnx_reader, scheduler_config
from .onnx_operators import MICROSOFT
from .onnx_reader import Graph
from .small_file import optional_json, read_json

INDEX = "model_index.json"
_COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder", "safety_checker")
_CLASSES: Mapping[str, frozenset[str]] = MappingProxyType({
    "text_encoder": frozenset({"CLIPTextModel", "ORTTextEncoder", "ORTModelTextEncoder"}),
    "text_encoder_2": frozenset({"CLIPTextModelWithProjection", "ORTTextEncoder", "ORTModelTextEncoder"}),
    "unet": frozenset({"UNet2DConditionModel", "ORTUnet", "ORTModelUnet"}),
    "vae": frozenset({"AutoencoderKL", "ORTVae"}),
    "vae_encoder": frozenset({"AutoencoderKL", "ORTVaeEncoder", "ORTModelVaeEncoder"}),
    "vae_decoder": frozenset({"AutoencoderKL", "ORTVaeDecoder", "ORTModelVaeDecoder"}),
    "tokenizer": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    "tokenizer_2": frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    "scheduler": frozenset(scheduler_config.CLASSES),
    "safety_checker": frozenset({"StableDiffusionSafetyChecker"}),
    "feature_extractor": frozenset({"CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"}),
    "image_encoder": frozenset({"CLIPVisionModelWithProjection"}),
})  # fmt: skip
"""Classes that a component may have; `OnnxRuntimeModel` may replace each."""
_PIPELINES = {"OnnxStableDiffusion": "StableDiffusion", "StableDiffusionOnnxPipeline": "StableDiffusionPipeline", "ORT": ""}
"""Prefix of ONNX pipeline names → prefix of the same pipeline in torch."""
_CUDA_ONLY = frozenset({"BiasAdd", "BiasSplitGelu", "GemmFloat8", "NhwcConv", "PackedMultiHeadAttention", "SkipGroupNorm"})
_GPU_ONLY = frozenset({"GroupNorm"})
_CPU_ONLY = frozenset({
    "DynamicQuantizeMatMul", "FusedGemm", "MatMulInteger16", "MatMulIntegerToFloat", "NhwcFusedConv", "NhwcMaxPool", "QGemm",
    *(f"QLinear{name}" for name in ("Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool", "LeakyRelu", "Mul", "ReduceMean")),
    *(f"QLinear{name}" for name in ("Sigmoid", "Softmax", "Where")),
})  # fmt: skip
"""ONNX Runtime's own operators that only some providers have; the others run everywhere."""
_DIRECTML_OPSET = 17
_INT8 = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QLinearConv", "MatMulIntegerToFloat"})
_PLENTY = 1 << 20
"""Tokenizers without a length report one far above this."""

_Json = Mapping[str, Any]


def manifest_of(folder: Path) -> Manifest:
    """A manifest for `folder` from its configs and graphs. It lists no files, so nothing can be verified.

    Raises:
        BundleError: a class outside the lists, a component that is missing, a config or graph that cannot be understood.
    """
    index = read_json(folder / INDEX)
    _check_classes(index, folder / INDEX)
    graphs = {name: onnx_reader.read(folder / name / "model.onnx") for name in _COMPONENTS if (folder / name / "model.onnx").exists()}
    for name in ("unet", "vae_decoder"):
        if name not in graphs:
            raise BundleError(
                f"{folder}: {name}/model.onnx is missing: this folder has PyTorch weights; export it first: diffusette export {folder} DEST"
            )
    unet = _unet(folder, graphs["unet"])
    vae = optional_json(folder / "vae_decoder/config.json")
    model_config.check(vae, model_config.Vae, folder / "vae_decoder/config.json")
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    noise = _noise(scheduler, folder)
    latent = _latent(vae, graphs["vae_decoder"], noise, large="text_embeds" in graphs["unet"].inputs)
    components = {name: (str(value[0]), str(value[1])) for name, value in index.items() if _is_component(value) and value[1] is not None}
    family = families.detect(_pipeline(str(index.get("_class_name"))), components, unet, latent.channels)
    tokenizers = {
        name: _tokenizer(folder, name, graphs[encoder])
        for encoder in family.text_encoders
        for name in [encoder.replace("text_encoder", "tokenizer")]
        if encoder in graphs
    }
    return Manifest(
        family=family.name,
        target=_target(graphs),
        components={name: _component(name, graph) for name, graph in graphs.items()},
        tokenizers=tokenizers,
        noise=noise,
        latent=latent,
        defaults=families.defaults(family, unet, scheduler, latent.downscale, {}),
        source=Source(families.model_name(index.get("_name_or_path"), folder.resolve().name)),
        files={},
        zero_empty_negative=families.zero_empty_negative(family, index),
        made_by=f"{index.get('_class_name')} without a manifest",
    )


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2  # pyright: ignore[reportUnknownArgumentType]  # JSON


def _check_classes(index: _Json, path: Path) -> None:
    name = str(index.get("_class_name"))
    if _pipeline(name) not in families.PIPELINES:
        known = ", ".join(sorted(families.PIPELINES))
        raise BundleError(f"{path}: pipeline {name!r} is not supported; expected one of {known}, or the ORT or Onnx form of one")
    for part, value in index.items():
        if not _is_component(value) or value[1] is None:
            continue
        if not isinstance(value[1], str):
            raise BundleError(f"{path}: {part} is {str(value)[:80]}, expected a library and the name of a class")
        allowed = {"OnnxRuntimeModel", *_CLASSES.get(part, ())}
        if value[1] not in allowed:
            raise BundleError(f"{path}: {part} is a {value[1]!r}, expected {' or '.join(sorted(allowed))}: other classes are not loaded")


def _pipeline(name: str) -> str:
    for start, other in _PIPELINES.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name


def _unet(folder: Path, graph: Graph) -> _Json:
    """The U-Net's config, or what its inputs reveal if it has none."""
    config = optional_json(folder / "unet/config.json")
    if config:
        model_config.check(config, model_config.Unet, folder / "unet/config.json")
        return model_config.complete(config, model_config.Unet)
    sample, states = graph.inputs.get("sample"), graph.inputs.get("encoder_hidden_states")
    if sample is None or states is None or len(sample.shape) != 4 or not isinstance(sample.shape[1], int):
        raise BundleError(
            f"{folder / 'unet/model.onnx'}: takes {sorted(graph.inputs)}, expected sample (batch, channels, height, width) and "
            f"encoder_hidden_states: export the model again"
        )
    return {
        "in_channels": sample.shape[1],
        "use_linear_projection": states.shape[-1] == 1024,  # the width of OpenCLIP-H, which only SD2 has
        "addition_embed_type": "text_time" if "text_embeds" in graph.inputs else None,
        "time_cond_proj_dim": 256 if "timestep_cond" in graph.inputs else None,
    }


def _latent(vae: _Json, decoder: Graph, noise: Noise, *, large: bool) -> Latent:
    latent = decoder.inputs.get("latent_sample")
    channels = latent.shape[1] if latent is not None and len(latent.shape) == 4 and isinstance(latent.shape[1], int) else 4
    return Latent(
        channels=vae.get("latent_channels") or channels,
        downscale=2 ** (len(vae.get("block_out_channels") or "four") - 1),
        scaling=(vae.get("scaling_factor") or (0.13025 if large else 0.18215)) / (1.0 if noise.edm is UNSET else noise.edm.data),
        shift=vae.get("shift_factor") or 0.0,
        **families.latent_statistics(vae),
    )


def _noise(scheduler: _Json, folder: Path) -> Noise:
    return scheduler_config.from_scheduler_config(scheduler, str(folder / "scheduler" / scheduler_config.FILE_NAME)).noise


def _tokenizer(folder: Path, name: str, encoder: Graph) -> Tokenizer:
    config = optional_json(folder / name / "tokenizer_config.json")
    length = config.get("model_max_length")
    if not isinstance(length, int) or not 3 <= length < _PLENTY:
        length = _positions(folder / name.replace("tokenizer", "text_encoder"), encoder)
    special = optional_json(folder / name / "special_tokens_map.json")
    pad = config.get("pad_token") or special.get("pad_token") or "<|endoftext|>"
    return Tokenizer(folder=name, length=length, pad=_token_id(folder / name, _content(pad)))


def _positions(folder: Path, encoder: Graph) -> int:
    """Tokens that the text encoder takes: its config says, or the shape of its input; CLIP's 77 where neither does."""
    config = optional_json(folder / "config.json")
    model_config.check(config, model_config.TextEncoder, folder / "config.json")
    if "max_position_embeddings" in config:
        return config["max_position_embeddings"]
    ids = encoder.inputs.get("input_ids")
    fixed = ids.shape[-1] if ids is not None and ids.shape else None
    return fixed if isinstance(fixed, int) else 77


def _content(token: object) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # JSON


def _token_id(folder: Path, token: str) -> int:
    found = clip_vocabulary.read(folder).tokens.get(token)
    if found is None:
        raise BundleError(f"{folder}: the padding token {token[:40]!r} is not in the vocabulary: download the model again")
    return found


def _component(name: str, graph: Graph) -> Component:
    return Component(graph=f"{name}/model.onnx", precision=_precision(graph), inputs=dict(graph.inputs), outputs=dict(graph.outputs))


def _precision(graph: Graph) -> Precision:
    used = {operator for _, operator in graph.operators}
    if "MatMulNBits" in used:
        return "int4"
    if used & _INT8:
        return "int8"
    half = sum(tensor.length for tensor in graph.initializers.values() if tensor.dtype == "float16")
    return "fp16" if 2 * half > sum(tensor.length for tensor in graph.initializers.values()) else "fp32"


def _target(graphs: Mapping[str, Graph]) -> Target:
    """The target that can run these graphs, by the ONNX Runtime operators in them; portable without any."""
    own = {operator for graph in graphs.values() for domain, operator in graph.operators if domain == MICROSOFT}
    if own & (_CUDA_ONLY | _GPU_ONLY):
        old = all(graph.opsets.get("", 0) <= _DIRECTML_OPSET for graph in graphs.values())
        return "directml" if old and not own & _CUDA_ONLY else "cuda"
    return "cpu" if own & _CPU_ONLY else "portable"
