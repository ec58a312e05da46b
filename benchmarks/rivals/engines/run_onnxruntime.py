"""ONNX Runtime with nothing around it: fp32 graphs as a converter writes them, attention unfused, and a DDIM loop of a few lines.

This is what a programmer gets who exports a model and calls `InferenceSession.run`: the base line of what fusing and quantizing gain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lines  # first: its clock starts with it


def open_engine(job: dict[str, Any]) -> tuple[lines.Draw, dict[str, str]]:
    import json

    import numpy as np
    import onnxruntime
    from PIL import Image

    bundle = Path(job["prepared"])
    manifest = json.loads((bundle / "manifest.json").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]

    def opened(name: str) -> Any:
        path = bundle / manifest["components"][name]["graph"]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session, lines.timed(name, lambda feeds: session.run(None, feeds)[0])

    (_, text_encoder), (unet_session, unet), (_, decode) = opened("text_encoder"), opened("unet"), opened("vae_decoder")
    timestep_type = np.int64 if "int64" in unet_session.get_inputs()[1].type else np.float32
    noise, latent = manifest["noise"], manifest["latent"]
    start = np.load(job["latents"])

    def draw(job: dict[str, Any]) -> Any:
        alpha_bars, timesteps = schedule(noise, job["steps"])
        last = alpha_bars[0] if noise.get("final") == "sigma_min" else 1.0
        hidden, x = np.concatenate([text_encoder({"input_ids": np.array([ids])}) for ids in job["tokens"]]), start
        for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
            feeds = {"sample": np.concatenate([x, x]), "timestep": np.full((2,), t, timestep_type), "encoder_hidden_states": hidden}
            negative, positive = np.split(unet(feeds), 2)
            out = negative + np.float32(job["guidance"]) * (positive - negative)
            a, s = np.float32(alpha_bars[t] ** 0.5), np.float32((1 - alpha_bars[t]) ** 0.5)
            x0, eps = (a * x - s * out, s * x + a * out) if noise["prediction"] == "v_prediction" else ((x - s * out) / a, out)
            following = last if t_next is None else alpha_bars[t_next]
            x = np.float32(following**0.5) * x0 + np.float32((1 - following) ** 0.5) * eps
        pixels = decode({"latent_sample": x / np.float32(latent["scaling"]) + np.float32(latent.get("shift", 0.0))})
        return Image.fromarray(np.rint(np.clip(pixels[0].transpose(1, 2, 0) * 127.5 + 127.5, 0, 255)).astype(np.uint8))

    return draw, {"precision": "fp32", "provider": "onnxruntime"}


def schedule(noise: dict[str, Any], steps: int) -> tuple[Any, list[int]]:
    """Products of (1 - beta) by timestep, and the timesteps of DDIM, descending."""
    import numpy as np

    train = noise["train_timesteps"]
    ends = np.sqrt([noise["beta_start"], noise["beta_end"]])
    alpha_bars = np.cumprod(1.0 - np.linspace(ends[0], ends[1], train) ** 2)
    if noise["spacing"] == "trailing":
        timesteps = np.round(np.arange(train, 0, -train / steps)).astype(int) - 1
    else:
        timesteps = (np.arange(steps) * (train // steps))[::-1] + noise["steps_offset"]
    return alpha_bars, timesteps.tolist()


if __name__ == "__main__":
    lines.main(open_engine)
