"""What the exporter finds out by running a model: here, what its U-Net predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from diffusette.export import calibration
from diffusette.models import manifest as manifests
from diffusette.models.bundle import DEMO, read_manifest
from diffusette.runtime.sampling.noise_levels import alpha_bars


def turned(folder: Path, prediction: str) -> Path:
    """The demo model, which was trained on v, made to return epsilon instead, or something that is neither."""
    shutil.copytree(DEMO, folder)
    found = read_manifest(folder)
    graph = onnx.load(folder / "unet/model.onnx", load_external_data=False)
    (output,) = [one for one in graph.graph.output if one.name == "out_sample"]
    for node in graph.graph.node:
        node.output[:] = ["v" if name == output.name else name for name in node.output]
    alpha = float(np.sqrt(alpha_bars(found.noise)[-1]))
    factors = {"epsilon": (np.sqrt(1 - alpha**2), alpha), "neither": (-1.0, 1.0)}[prediction]
    for name, factor in zip(("of_x", "of_v"), factors, strict=True):
        graph.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), name))
    graph.graph.node.extend(
        [
            helper.make_node("Mul", ["sample", "of_x"], ["x_part"]),
            helper.make_node("Mul", ["v", "of_v"], ["v_part"]),
            helper.make_node("Add", ["x_part", "v_part"], [output.name]),
        ]
    )
    (folder / "unet/model.onnx").write_bytes(graph.SerializeToString())
    (folder / "manifest.json").write_bytes(manifests.encode(msgspec.structs.replace(found, files={})))
    return folder


@pytest.mark.parametrize(("prediction", "answer"), [("epsilon", "epsilon"), ("neither", None)])
def test_a_unet_shows_what_it_predicts(tmp_path: Path, prediction: str, answer: str | None) -> None:
    assert calibration.prediction(DEMO) == "v_prediction"
    assert calibration.prediction(turned(tmp_path / "demo", prediction)) == answer
