"""optimum-onnx, as its documentation exports a pipeline and runs it with ONNX Runtime; with given noise and DDIM."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lines  # first: its clock starts with it


def open_engine(job: dict[str, Any]) -> tuple[lines.Draw, dict[str, str]]:
    import numpy as np
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    pipe = ORTStableDiffusionPipeline.from_pretrained(
        job["prepared"], provider="CPUExecutionProvider", session_options=options, safety_checker=None
    )
    pipe.text_encoder.forward = lines.timed("text_encoder", pipe.text_encoder.forward)
    pipe.unet.forward = lines.timed("unet", pipe.unet.forward)
    pipe.vae_decoder.forward = lines.timed("vae_decoder", pipe.vae_decoder.forward)
    latents = torch.from_numpy(np.load(job["latents"]))
    return lines.drawing(pipe, latents), {"precision": job["variant"], "provider": "onnxruntime"}


def prepare(job: dict[str, Any], folder: Path) -> None:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    with TemporaryDirectory() as temporary:
        source = lines.with_older_names(Path(job["folder"]), Path(temporary) / "source")
        ORTStableDiffusionPipeline.from_pretrained(str(source), export=True, safety_checker=None).save_pretrained(folder)


if __name__ == "__main__":
    lines.main(open_engine, prepare)
