"""Bundles with a safety checker for brightness."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from diffusette.models import manifest as manifests
from diffusette.models.bundle import read_manifest
from diffusette.models.formats.safetensors_file import save_weights
from diffusette.models.manifest import Component, Tensor
from tests.support import small_graphs


def checker_graph() -> onnx.ModelProto:
    """clip_input → image_embeds (batch, 3): the mean of each colour."""
    node = helper.make_node("ReduceMean", ["clip_input", "axes"], ["image_embeds"], keepdims=0)
    inputs, outputs = {"clip_input": (TensorProto.FLOAT, ["batch_size", 3, 8, 8])}, {"image_embeds": (TensorProto.FLOAT, ["batch_size", 3])}
    return small_graphs.model([node], inputs, outputs, {"axes": np.array([2, 3])})


def guarded(bundle: Path, folder: Path, threshold: float) -> Path:
    """A copy of `bundle` with a checker for brightness: one concept, "white"."""
    shutil.copytree(bundle, folder)
    small_graphs.save(checker_graph(), folder / "safety_checker/model.onnx")
    arrays = {
        "concept_embeds": np.ones((1, 3), np.float32),
        "concept_embeds_weights": np.full(1, threshold, np.float32),
        "special_care_embeds": np.ones((1, 3), np.float32),
        "special_care_embeds_weights": np.full(1, 2, np.float32),
    }
    said = {"size": "8", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
    save_weights(folder / "safety_checker/concepts.safetensors", arrays, said)
    component = Component(
        "safety_checker/model.onnx",
        "fp32",
        {"clip_input": Tensor("float32", ("batch_size", 3, 8, 8))},
        {"image_embeds": Tensor("float32", ("batch_size", 3))},
    )
    add(folder, component, [folder / "safety_checker/model.onnx", folder / "safety_checker/concepts.safetensors"])
    return folder


def add(folder: Path, component: Component, paths: list[Path]) -> None:
    """Add a safety checker to the manifest of the bundle in `folder`."""
    manifest = read_manifest(folder)
    listed = {path.relative_to(folder).as_posix(): manifests.File(path.stat().st_size, "0" * 64) for path in paths}
    changed = msgspec.structs.replace(
        manifest, components=manifest.components | {"safety_checker": component}, files=manifest.files | listed
    )
    (folder / manifests.FILE_NAME).write_bytes(manifests.encode(changed))
