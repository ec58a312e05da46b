"""diffusers, as its documentation loads and runs a pipeline on a CPU; with given noise and DDIM."""

from __future__ import annotations

from typing import Any

import lines  # first: its clock starts with it


def open_engine(job: dict[str, Any]) -> tuple[lines.Draw, dict[str, str]]:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(job["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job["variant"]]
    pipe = StableDiffusionPipeline.from_pretrained(job["folder"], torch_dtype=dtype, safety_checker=None)
    pipe.text_encoder.forward = lines.timed("text_encoder", pipe.text_encoder.forward)
    pipe.unet.forward = lines.timed("unet", pipe.unet.forward)
    pipe.vae.decode = lines.timed("vae_decoder", pipe.vae.decode)
    latents = torch.from_numpy(np.load(job["latents"])).to(dtype)
    return lines.drawing(pipe, latents), {"precision": job["variant"], "provider": "torch"}


if __name__ == "__main__":
    lines.main(open_engine)
