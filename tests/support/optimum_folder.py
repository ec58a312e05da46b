"""A folder in optimum's layout, exported as optimum does it: by torch's tracing exporter, weights of Linear layers numbered."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch

from diffusette.export.sources import diffusers_folder
from diffusette.export.tracing import build, torch_reference
from tests.support import tiny_models

DYNAMIC = {
    "text_encoder": {"input_ids": {0: "batch_size", 1: "sequence_length"}},
    "unet": {
        "sample": {0: "unet_sample_batch", 2: "unet_sample_height", 3: "unet_sample_width"},
        "timestep": {0: "steps"},
        "encoder_hidden_states": {0: "unet_time_batch", 1: "unet_time_sequence_length"},
    },
    "vae_encoder": {"sample": {0: "batch", 2: "sample_height", 3: "sample_width"}},
    "vae_decoder": {"latent_sample": {0: "batch", 2: "latent_height", 3: "latent_width"}},
}


def save(folder: Path, weights: Path) -> Path:
    """Writes the tiny SD1 in the diffusers folder `weights` as graphs into `folder`."""
    opened = diffusers_folder.open_folder(weights)
    for name, axes in DYNAMIC.items():
        component = build.build(opened, name)
        torch_reference.load(component)
        module = getattr(component.module, "model", component.module)
        feeds = torch_reference.examples(component, (8, 8), 2, tiny_models.TOKENS, 500.0, seed=0)
        outputs = [port.name for port in component.outputs][: 2 if name == "text_encoder" else 1]
        if name == "unet":
            feeds["timestep"] = feeds["timestep"].astype("int64")
            module.forward = _sample_of(module.forward)
        if name == "text_encoder":
            module.forward = _first_two_of(module.forward)
        (folder / name).mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracing exporter is deprecated, and says so
            torch.onnx.export(
                module,
                torch_reference.tensors(feeds[port.name] for port in component.inputs),
                folder / name / "model.onnx",
                dynamo=False,
                opset_version=14,
                input_names=list(axes),
                output_names=outputs,
                dynamic_axes=axes | {outputs[0]: {0: "batch"}},
            )
        config = weights / ("vae" if name.startswith("vae") else name) / "config.json"
        shutil.copyfile(config, folder / name / "config.json")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(weights / name, folder / name)
    for name in ("README.md", "model_index.json"):
        shutil.copyfile(weights / name, folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "ORTStableDiffusionPipeline"}))
    return folder


def _sample_of(unet):
    return lambda sample, timestep, states: unet(sample, timestep, states, return_dict=False)[0]


def _first_two_of(encoder):
    return lambda ids: encoder(ids)[:2]
