"""How faithful a bundle is to another one: pictures at the same seed, and each component on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..models.errors import RequestError
from ..runtime import pipeline
from ..runtime.parameters import Record
from ..runtime.request import Request
from .recorder import Exchange, Recorder, recorded
from .worker import Job

Array = NDArray[Any]
EQUAL = 200.0
"""What equal arrays get in dB, since JSON has no infinity."""
PICTURES = 4
"""Seeds that are compared, counting up from the job's."""
_TAPS, _SIGMA = 11, 1.5
_LUMA = (0.299, 0.587, 0.114)


class Fidelity(msgspec.Struct, frozen=True):
    """How close the pictures and the components of a bundle come to those of `reference`."""

    model_name: str
    reference: str
    reference_precision: str
    width: int
    height: int
    steps: int
    seeds: tuple[int, ...]
    psnr: tuple[float, ...]
    """dB, of each seed's picture; 200 for equal ones."""
    ssim: tuple[float, ...]
    """1 for equal ones."""
    components: dict[str, float]
    """The worst signal-to-noise ratio in dB over all calls for the first picture; 200 for equal outputs."""


def psnr(reference: Array, other: Array) -> float:
    """The peak signal-to-noise ratio of two uint8 pictures of one shape, in dB; 200 for equal ones."""
    error = float(np.mean(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    return EQUAL if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def snr(reference: Array, other: Array) -> float:
    """10·log10(|reference|² / |reference - other|²) in dB, 200 for equal arrays, -200 where `other` is not finite."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return -EQUAL
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - other.astype(np.float64))))
    return EQUAL if noise == 0.0 else 10.0 * math.log10(max(signal, 1e-300) / noise)


def ssim(reference: Array, other: Array) -> float:
    """The structural similarity of two uint8 RGB pictures, (height, width, 3), of one shape: 1 for equal ones.

    On luma (BT.601), with the Gaussian window of 11 × 11 (sigma 1.5) and the constants of Wang et al. 2004 ("Image quality
    assessment: from error visibility to structural similarity"), averaged where the window fits.

    Raises:
        RequestError: a side is shorter than 11 pixels.
    """
    if min(reference.shape[:2]) < _TAPS:
        raise RequestError(f"ssim: a picture of {reference.shape[1]} × {reference.shape[0]}, but expected sides of {_TAPS} or more pixels")
    x, y = (picture.astype(np.float64) @ np.asarray(_LUMA) for picture in (reference, other))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x * mean_x, _blurred(y * y) - mean_y * mean_y
    both = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    top = (2.0 * mean_x * mean_y + c1) * (2.0 * both + c2)
    return float(np.mean(top / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))))


def _blurred(plane: Array) -> Array:
    """`plane` under the Gaussian window, where that fits."""
    offsets = np.arange(_TAPS) - _TAPS // 2
    weights = np.exp(-0.5 * np.square(offsets / _SIGMA))
    weights /= weights.sum()
    rows = np.lib.stride_tricks.sliding_window_view(plane, _TAPS, axis=0) @ weights
    return np.lib.stride_tricks.sliding_window_view(rows, _TAPS, axis=1) @ weights


def compare(job: Job, reference: Path, tick: Callable[[], None]) -> Fidelity:
    """Draw `job`'s request at `PICTURES` seeds with its bundle and with that in `reference`, one after the other.

    What the job leaves open is settled by the reference's defaults, for both. `tick` is called after each picture; there
    are 2 × `PICTURES`.

    Raises:
        RequestError: the two bundles are not of one kind.
        DiffusetteError: whatever opening a bundle or drawing raises.
    """
    seeds = tuple(range(job.seed, job.seed + PICTURES))
    wanted = Request(job.prompt, width=job.width, height=job.height, steps=job.steps, guidance=job.guidance, sampler=job.sampler)
    drawer, recorder = recorded(pipeline.load(reference, "auto", job.memory, threads=job.threads))
    with drawer:
        manifest = drawer.manifest
        expected, records, exchanges = _draw(drawer, recorder, wanted, seeds, tick)
    request = _settled(wanted, records[0])
    drawer, recorder = recorded(pipeline.load(job.folder, job.provider, job.memory, threads=job.threads))
    with drawer:
        if drawer.manifest.family != manifest.family:
            raise RequestError(
                f"{reference} is of the family {manifest.family}, but the model is {drawer.manifest.family}: give a reference of one kind"
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
        components=components,
    )


def _draw(
    drawer: pipeline.Pipeline, recorder: Recorder, request: Request, seeds: Sequence[int], tick: Callable[[], None]
) -> tuple[list[Array], list[Record], list[Exchange]]:
    """The pictures of all seeds, their records, and what went in and out for the first."""
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
