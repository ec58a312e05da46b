"""The half of `make interop` in an environment of its own: optimum-onnx and diffusers draw, OpenVINO runs our graphs.

`theirs.py sources WORK` makes tiny models and has optimum export them; `theirs.py draw WORK` generates, and runs what the other half made.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import openvino
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTDiffusionPipeline

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import plan

from tests.support import tiny_models


def sources(work: Path) -> None:
    tiny_models.TOKENS = 16  # what optimum traces text encoders with
    for name, case in plan.CASES.items():
        if name != "demo":
            tiny_models.save(plan.source(work, name), case.family)
            main_export(str(plan.source(work, name)), work / name / "optimum", task="text-to-image", library_name="diffusers")


def draw(work: Path) -> None:
    for name, case in plan.CASES.items():
        np.save(work / name / "portable.npy", picture(ORTDiffusionPipeline.from_pretrained(work / name / "portable"), case))
        if name != "demo":
            np.save(work / name / "diffusers.npy", picture(DiffusionPipeline.from_pretrained(plan.source(work, name)), case))
    for kind in ("fp32", "int8"):
        run(work / "openvino", kind)


def picture(pipeline, case):
    """The image of `case` in int8, (height, width, 3)."""
    config = pipeline.scheduler.config
    spacing = config.get("timestep_spacing", "leading")  # where nothing is said, PNDM's, which Euler's own is not
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing=spacing)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        case.prompt,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        height=case.size,
        width=case.size,
        latents=torch.from_numpy(case.latents()),
    )
    return np.asarray(drawn.images[0])


def run(folder: Path, kind: str) -> None:
    """Runs the U-Net's graph on the recorded inputs, and writes what came out and which kernels ran."""
    precision = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    compiled = openvino.Core().compile_model(folder / kind / "unet/model.onnx", "CPU", precision)
    request = compiled.create_infer_request()
    feeds = np.load(folder / "feeds.npz")
    count = len({name.partition("/")[0] for name in feeds.files})
    outputs = [
        next(iter(request.infer({key.partition("/")[2]: feeds[key] for key in feeds.files if key.startswith(f"{place}/")}).values()))
        for place in range(count)
    ]
    np.savez(folder / f"{kind}.npz", **{str(place): output for place, output in enumerate(outputs)})
    ran = [info for info in request.profiling_info if info.real_time.total_seconds() > 0]
    plan.write(folder / f"{kind}.json", Counter(f"{info.node_type} {info.exec_type.lower().rpartition('_')[2]}" for info in ran))


if __name__ == "__main__":
    {"sources": sources, "draw": draw}[sys.argv[1]](Path(sys.argv[2]))
