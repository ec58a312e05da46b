"""A short grid that finds what suits this machine: first providers and threads, in turns, then memory plans and speeds with the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from ..models.bundle import DEMO, open_bundle
from ..runtime.engine import hardware, tuned_settings
from ..runtime.engine.memory_plans import PLANS
from ..runtime.engine.providers import TABLE, why_missing
from ..runtime.sampling.speed import SPEEDS
from . import runner
from .results import Report, Row
from .settings import Settings

REPEATS = 3
COPIES = 4
"""Times the size of its files that a model may take in memory."""
GAIN = 0.95
"""A setting has to take less than this share of the fewer threads' time to be worth more threads."""


def run(settings: Settings, advance: Callable[[str, float], None], keep: Callable[[Report], None]) -> Report:
    """Measure the grid for the first model of `settings`, and keep what is best for `auto`, unless the machine was too noisy.

    Raises:
        DiffusetteError: the model cannot be opened, or the advice cannot be written.
    """
    bundle = open_bundle(settings.models[0] or DEMO)
    cores = hardware.cores()
    threads = tuple(sorted({1, max(1, cores // 2), cores}))
    present = tuple(name for name, one in TABLE.items() if bundle.manifest.target in one.targets and not why_missing(one))
    common = replace(settings, repeats=REPEATS, models=settings.models[:1])
    grid = replace(common, providers=present or ("auto",), threads=threads)
    free = hardware.memory()
    size = sum(file.size for file in bundle.manifest.files.values())
    grid = replace(grid, together=free is not None and len(grid.jobs()) * COPIES * size < free[0])
    first = runner.run(grid, _part(advance, 0.0), keep)
    best = fastest(first.rows)
    if best is None:
        return first
    chosen = replace(common, providers=(best.provider,), threads=(best.threads,))
    plans = runner.run(
        replace(chosen, memories=tuple(plan for plan in PLANS if plan != best.memory)), _part(advance, 1 / 3), lambda _: None
    )
    faster = tuple(name for name in SPEEDS if name != "exact")
    speeds = runner.run(replace(chosen, speeds=faster), _part(advance, 2 / 3), lambda _: None)
    noise = tuple(dict.fromkeys(reason for part in (first, plans, speeds) for reason in part.noise.reasons))
    doubt = first.noise.disturbed if grid.together else noise
    rows = (*first.rows, *plans.rows, *speeds.rows)
    report = msgspec.structs.replace(
        first, rows=rows, noise=msgspec.structs.replace(first.noise, reasons=noise), advice=_words(best, bundle.folder, rows)
    )
    if not doubt:
        path = tuned_settings.remember(
            bundle.manifest, tuned_settings.Advice(best.provider, best.threads, hardware.processor(), report.date)
        )
        report = msgspec.structs.replace(report, advice=(*report.advice, f"kept for auto in {path}; diffusette bench --forget deletes it"))
    else:
        report = msgspec.structs.replace(report, advice=(*report.advice, "not kept for auto: the machine was too noisy; measure again"))
    keep(report)
    return report


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row with the lowest median; of nearly equal ones that with the fewest threads."""
    done = [row for row in rows if row.latency is not None and not row.error]
    best = min(done, key=_p50, default=None)
    return None if best is None else min((row for row in done if GAIN * _p50(row) <= _p50(best)), key=lambda row: (row.threads, _p50(row)))


def _p50(row: Row) -> float:
    assert row.latency is not None
    return row.latency.p50


def _words(best: Row, folder: Path, rows: Iterable[Row]) -> tuple[str, ...]:
    settings = f"--provider {best.provider} --threads {best.threads}"
    model = "" if folder.resolve() == DEMO.resolve() else f" --model {folder}"
    lines = [f"best on this machine, {_p50(best):.2f} s an image: diffusette generate PROMPT{model} {settings}"]
    by_memory = [row for row in rows if row.max_anonymous and not row.error and row.speed == "exact"]
    least = min(by_memory, key=lambda row: row.max_anonymous or 0, default=None)
    if least is not None and least.memory != best.memory:
        lines.append(f"least memory, {(least.max_anonymous or 0) / 1e6:.0f} MB and {_p50(least):.2f} s: --memory {least.memory}")
    quick = min((row for row in rows if row.latency and not row.error), key=_p50, default=None)
    if quick is not None and quick.speed != "exact":
        lines.append(f"fastest, {_p50(quick):.2f} s, with work left out: --speed {quick.speed} (what that costs: --judge, --reference)")
    return tuple(lines)


def _part(advance: Callable[[str, float], None], start: float) -> Callable[[str, float], None]:
    return lambda what, done: advance(what, start + done / 3)
