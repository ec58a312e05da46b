"""The request of all engines: the same prompt, noise, sizes, steps, guidance, sampler and threads, with no default left open."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from ...models.bundle import DEMO, open_bundle
from ...models.errors import RequestError
from ...runtime.engine import hardware
from ...runtime.prompt.tokenizer import open_tokenizer
from ...runtime.sampling import rng
from ..measure.worker import Job
from .catalog import Rival
from .environments import Tick, UnavailableError, command, prepared, python_of

FAMILIES = ("sd1", "sd2")
"""Families whose pipelines take one prompt, one text encoder and no more."""


def terms(job: Job, source: Path | None, folder: Path) -> Job:
    """`job` with nothing left open, on the weights in `source`; its noise goes into `folder`.

    Raises:
        RequestError: no source, or the model is of a family that cannot be compared.
    """
    bundle = open_bundle(Path(job.folder or DEMO))
    manifest, defaults = bundle.manifest, bundle.manifest.defaults
    if source is None and bundle.folder.resolve() == DEMO.resolve():
        source = DEMO.parent / "source"
    if source is None or not (source / "model_index.json").is_file():
        raise RequestError(
            f"source: {source or 'none'}, but other engines read the diffusers folder that {bundle.folder.name} was exported from: "
            "give it with --source DIR"
        )
    if manifest.family not in FAMILIES:
        raise RequestError(f"against: the model is {manifest.family}, but other engines are compared on {' and '.join(FAMILIES)}")
    width, height = job.width or defaults.width, job.height or defaults.height
    latent = manifest.latent
    noise = rng.rng("numpy", job.seed).normal((1, latent.channels, height // latent.downscale, width // latent.downscale))
    np.save(folder / "noise.npy", noise)
    description = manifest.tokenizers["tokenizer"]
    tokenizer = open_tokenizer(bundle.path(description.folder), description)
    ids = [tuple(token for group in tokenizer.encode(text).groups for token in group) for text in ("", job.prompt)]
    return msgspec.structs.replace(
        job,
        folder=str(source.resolve()),
        width=width,
        height=height,
        steps=job.steps or defaults.steps,
        guidance=defaults.guidance if job.guidance is None else job.guidance,
        threads=job.threads or hardware.cores(),
        latents=str(folder / "noise.npy"),
        tokens=tuple(tokenizer.chunk(one[: description.length - 2]) for one in ids),
    )


def start(rival: Rival, job: Job, environments: Path, tick: Tick) -> tuple[Job, list[str]]:
    """The job for `rival`, and what starts it; its environment and weights are made where they are missing.

    Raises:
        UnavailableError: they could not be made.
    """
    try:
        python = python_of(rival, environments, tick)
        folder = prepared(rival, python, job, environments, tick)
    except OSError as error:
        raise UnavailableError(f"{rival.name} could not be set up: {error}") from error
    job = msgspec.structs.replace(job, prepared="" if folder is None else str(folder))
    return job, command(rival, python, job)
