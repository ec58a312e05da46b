"""Our half of `make interop`: exports for the others, generates from what optimum exports, and judges.

`ours.py export WORK` after `theirs.py sources`, `ours.py compare WORK` after `theirs.py draw`; fails below the bars.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent))

import plan

from diffusette.export import calibration
from diffusette.export.export import Options, export_model
from diffusette.export.graphs import parity
from diffusette.runtime import pipeline
from diffusette.runtime.request import Request

PICTURES, FLOATS, QUANTIZED = 60.0, 100.0, 24.0
"""Bars in dB: images against images, OpenVINO's float32 against ONNX Runtime's, and its 8 bit against float32."""
INT8 = 0.8
"""The share of convolutions that OpenVINO has to run in int8."""


def export(work: Path) -> None:
    (work / "openvino").mkdir(exist_ok=True)
    for name in plan.CASES:
        (work / name).mkdir(exist_ok=True)
        export_model(plan.source(work, name), work / name / "portable", Options("portable", "fp32", force=True))
    export_model(plan.source(work, "demo"), work / "openvino/int8", Options("openvino", "int8", force=True))
    export_model(plan.source(work, "demo"), work / "openvino/fp32", Options("openvino", "fp32", force=True))
    recorded = calibration.record(work / "demo/portable", (plan.CASES["demo"].prompt,))["unet"]
    feeds = {f"{place}/{key}": value for place, feed in enumerate(recorded[:: len(recorded) // 6]) for key, value in feed.items()}
    np.savez(work / "openvino/feeds.npz", **feeds)


def compare(work: Path) -> bool:
    """Prints each figure; whether all reach their bars."""
    good: list[bool] = []
    for name, case in plan.CASES.items():
        drawn = {folder: picture(work / name / folder, case) for folder in ("portable", "optimum") if (work / name / folder).is_dir()}
        good.append(
            told(
                f"{name}: our bundle in optimum-onnx, against our runtime", psnr(drawn["portable"], work / name / "portable.npy"), PICTURES
            )
        )
        if name != "demo":
            expected = work / name / "diffusers.npy"
            good.append(told(f"{name}: optimum's export in our runtime, against diffusers", psnr(drawn["optimum"], expected), PICTURES))
            good.append(told(f"{name}: our bundle in our runtime, against diffusers", psnr(drawn["portable"], expected), PICTURES))
    good += openvino(work / "openvino")
    return all(good)


def picture(folder: Path, case: plan.Case) -> np.ndarray:
    """What our runtime generates from `folder`."""
    with pipeline.load(folder, provider="cpu") as drawing:
        wanted = Request(
            case.prompt, width=case.size, height=case.size, steps=case.steps, guidance=case.guidance, sampler="euler", schedule="model"
        )
        return np.asarray(drawing.generate(wanted, seed=case.seed).images[0])


def openvino(folder: Path) -> list[bool]:
    feeds = np.load(folder / "feeds.npz")
    count = len({name.partition("/")[0] for name in feeds.files})
    inputs = [{key.partition("/")[2]: feeds[key] for key in feeds.files if key.startswith(f"{place}/")} for place in range(count)]
    ours = {
        kind: [calibration.open_graph(folder / kind / "unet/model.onnx").run(feed)["out_sample"] for feed in inputs]
        for kind in ("fp32", "int8")
    }
    theirs = {kind: [np.load(folder / f"{kind}.npz")[str(place)] for place in range(count)] for kind in ours}

    def worst(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        return min(parity.snr(*pair) for pair in zip(one, other, strict=True))

    good = [told("openvino: its float32 against ONNX Runtime's", worst(ours["fp32"], theirs["fp32"]), FLOATS)]
    good.append(told("openvino: its 8 bit against float32", worst(ours["fp32"], theirs["int8"]), QUANTIZED))
    told("openvino: ONNX Runtime's 8 bit of the same graph against float32", worst(ours["fp32"], ours["int8"]), QUANTIZED)
    ran = plan.read(folder / "int8.json")
    print("openvino: kernels", ", ".join(f"{name} {number}" for name, number in sorted(ran.items())))
    small, all_ = (
        sum(number for name, number in ran.items() if name.startswith("Convolution") and name.endswith(end)) for end in ("i8", "")
    )
    good.append(told("openvino: convolutions in int8, per cent", 100 * small / all_, 100 * INT8))
    return good


def psnr(drawn: np.ndarray, other: Path) -> float:
    """Of int8 images, in dB."""
    error = np.mean((drawn.astype(np.float64) - np.load(other)) ** 2)
    return parity.PERFECT if error == 0 else float(10 * np.log10(255**2 / error))


def told(what: str, value: float, bar: float) -> bool:
    print(f"{'ok  ' if value >= bar else 'BAD '} {value:6.1f} (at least {bar:.0f})  {what}")
    return value >= bar


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    elif not compare(Path(sys.argv[2])):
        sys.exit(1)
