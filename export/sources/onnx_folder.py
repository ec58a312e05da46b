"""Folders of ONNX graphs as a source: optimum's layout, or the older one of diffusers.

There are no weights in torch to compare with, so the reference is the source's own graph in ONNX Runtime. Graphs keep their
operators; weights that an exporter has numbered get the names of the layers that use them, for recipes and LoRAs to find.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...models import families, manifest
from ...models.bundle import open_bundle
from ...models.errors import BundleError, RequestError
from ...models.formats import onnx_replace_weights
from ...models.formats.onnx_reader import Initializer
from ...models.formats.small_file import optional_json
from ...models.manifest import Component, Manifest, Target, Tensor
from ..graphs import edit, parity, save
from ..graphs.edit import lazy
from ..runtime_bridge import open_graph
from .diffusers_folder import STEMS, Array, Source, Weights, licence_of

TARGETS: tuple[Target, ...] = ("portable", "cpu")
"""Targets of ready-made graphs: other targets need graphs made from weights."""
_SHAPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "input_ids": ("batch_size", "sequence_length"),
        "sample": ("batch_size", "channels", "height", "width"),
        "latent_sample": ("batch_size", "channels", "height", "width"),
        "timestep": ("batch_size",),
        "encoder_hidden_states": ("batch_size", "sequence_length", "width"),
        "timestep_cond": ("batch_size", "width"),
        "text_embeds": ("batch_size", "width"),
        "time_ids": ("batch_size", "numbers"),
    }
)
"""Inputs of these graphs, and the names of their free dimensions."""


def is_folder(folder: Path) -> bool:
    """Whether `folder` has graphs and no weights to make better ones from."""
    return (folder / "unet/model.onnx").exists() and not any((folder / "unet").glob(f"{STEMS[0]}*.safetensors"))


def open_graphs(folder: Path) -> Source:
    """The model in `folder`, its graphs looked at as those of a bundle are: operators, paths, inputs and outputs.

    Raises:
        BundleError: damaged, hostile, or not in float32.
        RequestError: it is a bundle already.
    """
    if (folder / manifest.FILE_NAME).exists():
        raise RequestError(f"{folder}: is a bundle already; give what it was made from")
    bundle = open_bundle(folder)
    found, notes = bundle.manifest, list[str]()
    family = families.FAMILIES[found.family]
    missing = [name for name in family.text_encoders if name not in found.components]
    if missing:
        raise BundleError(f"{folder}: {missing[0]}/model.onnx is missing, which a {family.name} needs: export the whole pipeline again")
    for name in family.components:
        if name in found.components and found.components[name].precision != "fp32":
            raise BundleError(
                f"{folder}: {name} is {found.components[name].precision} already, expected float32 graphs; "
                f"the folder can be used as it is: --model {folder}"
            )
        unknown = set(bundle.graphs[name].inputs) - _SHAPES.keys() if name in bundle.graphs else set[str]()
        if unknown:
            raise BundleError(f"{folder / name / save.GRAPH}: takes {min(unknown)!r}, which no Stable Diffusion does: not supported")
    if "safety_checker" in found.components:
        notes.append(f"{folder}: its safety checker is left out: a graph without its concepts; give the diffusers folder to have one")
    configs: dict[str, families.Config] = {name: optional_json(folder / name / "config.json") for name in (*family.text_encoders, "unet")}
    latent = found.latent
    configs["vae"] = {
        **optional_json(folder / "vae_decoder/config.json"),
        "latent_channels": latent.channels,
        "scaling_factor": latent.scaling,
        "shift_factor": latent.shift,
        "block_out_channels": [0] * (1 + int(math.log2(latent.downscale))),
    }
    configs["scheduler"] = optional_json(folder / "scheduler/scheduler_config.json")

    def weights(name: str) -> Weights:
        parts = [part for part in bundle.graphs if part == name or (name == "vae" and part.startswith("vae_"))]
        entries = {f"{part}/{key}": (part, one) for part in parts for key, one in bundle.graphs[part].initializers.items()}
        readers = {key: partial(_values, folder / part / save.GRAPH, one) for key, (part, one) in entries.items()}
        return Weights({key: one.shape for key, (_, one) in entries.items()}, readers)

    return Source(
        name=found.source.name,
        path=folder,
        family=family,
        configs=MappingProxyType(configs),
        weights=weights,
        overrides={},
        licence=licence_of(folder),
        notes=tuple(notes),
        graphs=found,
    )


def _values(path: Path, initializer: Initializer) -> Array:
    return np.array(onnx_replace_weights.values(path, initializer), dtype=np.float32)


def export(source: Source, name: str, folder: Path, target: Target) -> Component:
    """Write the graph of component `name` into `folder`, after comparing it with the source's graph.

    Raises:
        RequestError: a target that needs weights.
        NumericalError: it does not agree.
    """
    assert source.graphs is not None
    if target not in TARGETS:
        raise RequestError(
            f"--target {target}: {source.path} has graphs only, expected --target {' or '.join(TARGETS)}, "
            f"or the diffusers folder with its weights, from which graphs for {target} are made"
        )
    said, path = source.graphs.components[name], source.path / name / save.GRAPH
    inputs = {key: _port(key, tensor) for key, tensor in said.inputs.items()}
    save.save(_prepared(path, inputs), folder)
    feeds = list(_cases(source, name, inputs))
    expected, got = ([session.run(feed) for feed in feeds] for session in map(open_graph, (path, folder / save.GRAPH)))
    worst = {key: min(parity.snr(one[key], other[key]) for one, other in zip(expected, got, strict=True)) for key in said.outputs}
    found = parity.Parity(round(min(worst.values()), 2), worst)
    parity.require(name, "fp32", found, parity.BARS["fp32"])
    return Component(f"{name}/{save.GRAPH}", "fp32", inputs, dict(said.outputs), found.db)


def described(source: Source, target: Target) -> Manifest:
    """The folder's own manifest, without its components."""
    assert source.graphs is not None
    made = manifest.Source(source.name, source.revision, source.licence, reference="graphs")
    fields = {name: getattr(source.graphs, name) for name in ("family", "tokenizers", "noise", "latent", "defaults")}
    return Manifest(**fields, target=target, components={}, source=made, files={})


def _port(name: str, tensor: Tensor) -> Tensor:
    """The input with our names for its free dimensions."""
    names = _SHAPES[name]
    if len(tensor.shape) not in ({0, 1} if name == "timestep" else {len(names)}):
        raise BundleError(f"the input {name} is {list(tensor.shape)}, expected {list(names)}: export the model again")
    return Tensor(tensor.dtype, tuple(ours if isinstance(size, str) else size for ours, size in zip(names, tensor.shape, strict=False)))


def _prepared(path: Path, inputs: Mapping[str, Tensor]) -> ir.Model:
    """The graph at `path`, weights unread, with our names for free dimensions and for weights that an exporter has numbered."""
    model: ir.Model = cast("Any", ir).load(path)
    for value in model.graph.inputs:
        if (known := inputs.get(value.name or "")) is not None:
            value.shape = ir.Shape(known.shape)
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = lazy(value.name or "", edit.dims(tensor), _reader(path, tensor), tensor.dtype)
    taken = set(model.graph.initializers)
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in {"MatMul", "Gemm", "Conv"} else None
        old = "" if weight is None else weight.name or ""
        module = ".".join((node.name or "").strip("/").split("/")[:-1])
        name = f"{module}.weight"
        if weight is None or old not in taken or not re.match(r"\w+::", old) or not module or name in taken:
            continue
        del model.graph.initializers[old]
        weight.name = name
        model.graph.initializers.add(weight)
        taken.add(name)
    return model


def _reader(path: Path, tensor: ir.ExternalTensor) -> Callable[[], NDArray[Any]]:
    place: Any = tensor
    file, dtype, shape = path.parent / str(place.location), tensor.dtype.numpy(), edit.dims(tensor)
    return lambda: np.fromfile(file, dtype, math.prod(shape), offset=tensor.offset or 0).reshape(shape)


def _cases(source: Source, name: str, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of two sizes and batches, as far as the graph leaves them free."""
    assert source.graphs is not None
    latent, config = source.graphs.latent, source.configs
    channels = {"vae_encoder": 3, "vae_decoder": latent.channels}.get(name) or int(config["unet"].get("in_channels", latent.channels))
    for number, (batch, height, width) in enumerate(((1, 8, 8), (2, 12, 16))):
        scale = latent.downscale if name == "vae_encoder" else 2
        free = {"batch_size": batch, "channels": channels, "height": height * scale, "width": width * scale}
        free |= {"sequence_length": 77, "numbers": 6}
        rng = np.random.default_rng(number)
        feeds: dict[str, NDArray[Any]] = {}
        for key, tensor in inputs.items():
            wide = free | ({"width": _width(source, key)} if len(tensor.shape) in {2, 3} else {})
            if name.startswith("text_encoder"):
                wide["sequence_length"] = source.graphs.tokenizers[name.replace("text_encoder", "tokenizer")].length
            shape = [size if isinstance(size, int) else wide[size] for size in tensor.shape]
            if key == "input_ids":
                found: NDArray[Any] = rng.integers(0, int(config[name].get("vocab_size", 1)), shape)
            else:
                found = np.full(shape, 500.0) if key == "timestep" else rng.standard_normal(shape)
            feeds[key] = np.asarray(found, tensor.dtype)
        yield feeds


def _width(source: Source, name: str) -> int:
    """The last dimension of an input, where the graph leaves it free."""
    key = {"encoder_hidden_states": "cross_attention_dim", "timestep_cond": "time_cond_proj_dim"}.get(name)
    if key is not None:
        return int(source.configs["unet"].get(key) or 1)
    return int(source.configs.get("text_encoder_2", {}).get("projection_dim") or 1)
