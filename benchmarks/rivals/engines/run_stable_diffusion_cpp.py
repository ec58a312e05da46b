"""stable-diffusion.cpp through its Python binding. It makes its own noise, so its images differ from those of the other engines.

It tells no times of its parts; DDIM with trailing timesteps draws, flash attention is on, and weights are converted when they are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lines  # first: its clock starts with it


def open_engine(job: dict[str, Any]) -> tuple[lines.Draw, dict[str, str]]:
    from stable_diffusion_cpp import StableDiffusion

    try:
        engine = StableDiffusion(
            model_path=job["prepared"], n_threads=job["threads"], wtype=job["variant"], flash_attn=True, vae_decode_only=True, verbose=False
        )
    except ValueError as error:  # a null pointer, and no word about why
        message = f"it could not load the model ({error}); it knows the layouts and sizes of released models only"
        raise RuntimeError(message) from error

    def draw(job: dict[str, Any]) -> Any:
        return engine.generate_image(
            prompt=job["prompt"],
            width=job["width"],
            height=job["height"],
            sample_steps=job["steps"],
            cfg_scale=job["guidance"],
            sample_method="ddim_trailing",
            seed=job["seed"],
        )[0]

    return draw, {"precision": job["variant"], "provider": "ggml"}


def prepare(job: dict[str, Any], folder: Path) -> None:
    lines.with_older_names(Path(job["folder"]), folder)


if __name__ == "__main__":
    lines.main(open_engine, prepare)
