"""OpenVINO through optimum-intel, as its documentation exports, quantizes and runs a pipeline; with given noise and DDIM.

`auto` leaves the precision of the computation to OpenVINO, which takes bfloat16 where the processor has it. `int8` is the
documented hybrid quantization of diffusion models: 8-bit weights everywhere, 8-bit activations where that gains speed.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lines  # first: its clock starts with it

CALIBRATION = 16
"""U-Net calls that the quantizer looks at."""
PROMPTS = ("a red apple", "a fox in the snow", "a castle on a hill", "a bowl of soup")


def open_engine(job: dict[str, Any]) -> tuple[lines.Draw, dict[str, str]]:
    import numpy as np
    import torch
    from optimum.intel import OVStableDiffusionPipeline

    torch.set_num_threads(job["threads"])
    config = {"INFERENCE_NUM_THREADS": str(job["threads"]), "PERFORMANCE_HINT": "LATENCY"}
    pipe = OVStableDiffusionPipeline.from_pretrained(job["prepared"], device="CPU", ov_config=config, compile=False, safety_checker=None)
    pipe.reshape(batch_size=1, height=job["height"], width=job["width"], num_images_per_prompt=1)
    pipe.compile()
    precision = str(pipe.unet.request.get_property("INFERENCE_PRECISION_HINT")).strip("<>").split("'")[1]
    for name, part in (("text_encoder", pipe.text_encoder), ("unet", pipe.unet), ("vae_decoder", pipe.vae_decoder)):
        part.forward = lines.timed(name, part.forward)
    latents = torch.from_numpy(np.load(job["latents"]))
    kind = precision if job["variant"] == "auto" else f"{job['variant']}+{precision}"
    return lines.drawing(pipe, latents), {"precision": kind, "provider": "openvino"}


def prepare(job: dict[str, Any], folder: Path) -> None:
    from optimum.intel import OVStableDiffusionPipeline, OVWeightQuantizationConfig

    settings: dict[str, Any] = {}
    if job["variant"] == "int8":
        settings["quantization_config"] = OVWeightQuantizationConfig(bits=8, dataset=list(PROMPTS), num_samples=CALIBRATION)
    with TemporaryDirectory() as temporary:
        source = str(lines.with_older_names(Path(job["folder"]), Path(temporary) / "source"))
        pipe = OVStableDiffusionPipeline.from_pretrained(source, export=True, compile=False, safety_checker=None, **settings)
        pipe.save_pretrained(folder)


if __name__ == "__main__":
    lines.main(open_engine, prepare)
