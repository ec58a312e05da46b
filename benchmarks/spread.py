"""How bundles do by group of prompts: every combination of settings generates the same prompts with the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ..models.errors import RequestError
from ..runtime import pipeline
from ..runtime.metadata.record import tool
from ..runtime.request import MAX_COUNT, Request, number_of
from .measure.machine_noise import describe
from .measure.worker import Job
from .quality import grouped_prompts, spread
from .quality.grouped_prompts import GroupedPrompt
from .quality.spread import Measured, SpreadReport
from .settings import Settings


def run(
    settings: Settings, file: Path, seeds: int, advance: Callable[[str, float], None], keep: Callable[[SpreadReport], None]
) -> SpreadReport:
    """Generate the prompts of `file`, each with `seeds` seeds from that of `settings` on, for each combination of `settings`.

    `keep` receives the report after each combination.

    Raises:
        BundleError: the file cannot be read, or a bundle cannot be opened.
        RequestError: a line of the file has another form, the seeds are out of range, or the size is none that the judge looks at.
        DiffusetteError: any error of generating.
    """
    number_of("seeds", seeds, int, 1, MAX_COUNT)
    prompts, jobs = grouped_prompts.read(file), settings.jobs()
    chosen = tuple(range(settings.seed, settings.seed + seeds))
    report = SpreadReport(tool(), datetime.now(UTC).isoformat(timespec="seconds"), describe(), len(prompts), chosen, ())
    first: list[spread.Values] = []
    for number, (job, label) in enumerate(zip(jobs, _labels(jobs), strict=True)):
        done = _Progress(advance, label, number * len(prompts), len(jobs) * len(prompts))
        values, measured = _measured(job, label, prompts, chosen, done)
        if number:
            compared = spread.groups(prompts, spread.differences(values, first), seeds, differ=True)
            measured = msgspec.structs.replace(measured, differences=compared)
        else:
            first = values
        complete = number == len(jobs) - 1
        report = msgspec.structs.replace(report, measured=(*report.measured, measured), complete=complete)
        keep(report)
    return report


class _Progress:
    """Counts the prompts that are done."""

    def __init__(self, advance: Callable[[str, float], None], label: str, done: int, total: int) -> None:
        self._advance, self._label, self._done, self._total = advance, label, done, total

    def __call__(self) -> None:
        self._done += 1
        self._advance(self._label, self._done / self._total)


def _measured(
    job: Job, label: str, prompts: Sequence[GroupedPrompt], seeds: Sequence[int], tick: Callable[[], None]
) -> tuple[list[spread.Values], Measured]:
    """The measures of each prompt, and their summary."""
    template = Request("", width=job.width, height=job.height, guidance=job.guidance, sampler=job.sampler, speed=job.speed, steps=job.steps)
    with pipeline.load(job.folder, job.provider, job.memory, threads=job.threads) as drawer:
        values, failures, result, seconds = spread.measure(drawer, prompts, seeds, replace(template, seed=seeds[0]), tick)
        unjudged = any(one.expect is not None for one in prompts) and not spread.judgeable(drawer, prompts)
        manifest = drawer.manifest
    return values, Measured(
        label=label,
        model_name=manifest.source.name,
        folder=job.folder or "",
        precision=manifest.components["unet"].precision,
        provider=result.provider,
        memory=result.plan,
        steps=job.steps or manifest.defaults.steps,
        speed=job.speed,
        safety=result.safety,
        groups=spread.groups(prompts, values, len(seeds)),
        failures=tuple(failures),
        seconds=seconds,
        notes=("not judged: the judge knows the images of the demo model only",) if unjudged else (),
    )


def _labels(jobs: Sequence[Job]) -> list[str]:
    """Short names that tell `jobs` apart.

    Raises:
        RequestError: two of them are the same.
    """
    sides: tuple[Callable[[Job], str], ...] = (
        lambda job: Path(job.folder or "").name,
        lambda job: job.folder or "",
        lambda job: job.provider,
        lambda job: job.memory,
        lambda job: f"{job.threads} threads",
        lambda job: f"{job.width}×{job.height}",
        lambda job: f"{job.steps} steps",
        lambda job: job.speed,
    )
    telling = [side for side in sides if len({side(job) for job in jobs}) > 1] or [sides[0]]
    if sides[0] in telling and len({sides[0](job) for job in jobs}) == len({sides[1](job) for job in jobs}):
        telling = [side for side in telling if side is not sides[1]]
    names = [", ".join(side(job) for side in telling) for job in jobs]
    if len(set(names)) < len(names):
        raise RequestError("spread: the same bundle with the same settings twice: expected different --model folders, or other settings")
    return names
