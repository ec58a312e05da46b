"""Fidelity of a bundle to another: images from the same seeds, and components on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models.errors import RequestError
from ...runtime import pipeline
from ...runtime.metadata.record import Record
from ...runtime.request import Request
from ..measure.session_recorder import Exchange, Recorder, recorded
from ..measure.worker import Job
from .image_metrics import EQUAL, gmsd, psnr, snr, ssim

Array = NDArray[Any]
PICTURES = 4
"""Seeds that are compared, counting up from the job's."""


class Fidelity(msgspec.Struct, frozen=True):
    """Similarity of a bundle's images and components to those of `reference`."""

    model_name: str
    reference: str
    reference_precision: str
    width: int
    height: int
    steps: int
    seeds: tuple[int, ...]
    psnr: tuple[float, ...]
    """dB, of each seed's image; 200 for equal ones."""
    ssim: tuple[float, ...]
    """1 for equal ones."""
    gmsd: tuple[float, ...]
    """A perceptual distance, 0 for equal ones; `metrics.gmsd`."""
    components: dict[str, float]
    """The worst signal-to-noise ratio in dB over all calls for the first image; 200 for equal outputs."""


def compare(job: Job, reference: Path, tick: Callable[[], None]) -> Fidelity:
    """Draw `job`'s request at `PICTURES` seeds with its bundle and with that in `reference`, one after the other.

    Settings that the job leaves open take the reference's defaults for both. `tick` is called after each image; there
    are 2 × `PICTURES`.

    Raises:
        RequestError: the two bundles are not of one kind.
        DiffusetteError: any error of opening a bundle or generating.
    """
    seeds = tuple(range(job.seed, job.seed + PICTURES))
    wanted = Request(job.prompt, width=job.width, height=job.height, steps=job.steps, guidance=job.guidance, sampler=job.sampler)
    drawer, recorder = recorded(pipeline.load(reference, "auto", job.memory, threads=job.threads))
    with drawer:
        manifest = drawer.manifest
        expected, records, exchanges = _draw(drawer, recorder, wanted, seeds, tick)
    request = replace(_settled(wanted, records[0]), speed=job.speed)
    drawer, recorder = recorded(pipeline.load(job.folder, job.provider, job.memory, threads=job.threads))
    with drawer:
        if drawer.manifest.family != manifest.family:
            raise RequestError(
                f"{reference} is of the family {manifest.family}, but the model is {drawer.manifest.family}; use "
                f"a reference of the same family"
            )
        pictures, _, _ = _draw(drawer, recorder, request, seeds, tick)
        components = _replayed(recorder, exchanges)
        name = drawer.manifest.source.name
    return Fidelity(
        model_name=name,
        reference=manifest.source.name,
        reference_precision=manifest.components["unet"].precision,
        width=records[0].width,
        height=records[0].height,
        steps=records[0].steps,
        seeds=seeds,
        psnr=tuple(psnr(one, other) for one, other in zip(expected, pictures, strict=True)),
        ssim=tuple(ssim(one, other) for one, other in zip(expected, pictures, strict=True)),
        gmsd=tuple(gmsd(one, other) for one, other in zip(expected, pictures, strict=True)),
        components=components,
    )


def _draw(
    drawer: pipeline.Pipeline, recorder: Recorder, request: Request, seeds: Sequence[int], tick: Callable[[], None]
) -> tuple[list[Array], list[Record], list[Exchange]]:
    """The images of all seeds, their records, and what went in and out for the first."""
    pictures: list[Array] = []
    records: list[Record] = []
    exchanges: list[Exchange] = []
    for seed in seeds:
        recorder.exchanges = exchanges if seed == seeds[0] else None
        result = drawer.generate(replace(request, seed=seed))
        pictures.append(np.asarray(result.images[0]))
        records.append(result.metadata[0])
        tick()
    recorder.exchanges = None
    return pictures, records, exchanges


def _settled(request: Request, record: Record) -> Request:
    """`request` with nothing left open."""
    return replace(
        request,
        width=record.width,
        height=record.height,
        steps=record.steps,
        guidance=record.guidance,
        sampler=record.sampler,
        schedule=record.schedule,
    )


def _replayed(recorder: Recorder, exchanges: Sequence[Exchange]) -> dict[str, float]:
    """Component → its worst SNR; one whose inputs are not the reference's is left out."""
    worst: dict[str, float] = {}
    for exchange in exchanges:
        component = recorder.bundle.manifest.components.get(exchange.component)
        if component is None or component.inputs.keys() != exchange.feeds.keys():
            continue
        outputs = recorder.run(exchange.component, exchange.feeds)
        found = min(snr(value, outputs[name]) for name, value in exchange.outputs.items() if name in outputs)
        worst[exchange.component] = min(worst.get(exchange.component, EQUAL), found)
    return worst
