"""Results of a benchmark: one row per combination of settings, comparisons, fidelity, and the environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .measure.cold_start import Cold
from .measure.contender import Contender
from .measure.machine_noise import Machine, Noise
from .measure.statistics import Latency, Ratio, latency
from .measure.worker import Drawn
from .quality.fidelity import Fidelity
from .quality.image_metrics import Likeness
from .quality.prompt_fidelity import PromptFidelity

SCHEMA = 2
POINTS = 200
"""Samples of memory over time that are kept."""
Scalar = str | int | float | bool | None


class ComponentCost(msgspec.Struct, frozen=True):
    """The cost of one component in a request."""

    latency: Latency
    """Seconds a request, all calls together."""
    calls: int
    """Calls a request."""
    max_ram: int | None
    """Peak resident memory of the process during its calls, in bytes; none if they were too short to be sampled."""
    max_anonymous: int | None
    latencies: tuple[float, ...] = ()
    """Every timing behind `latency`."""


class Likened(msgspec.Struct, frozen=True):
    """An image against another engine's."""

    to: str
    """Engine and precision."""
    likeness: Likeness


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One combination of settings. Times are in seconds, memory is in bytes."""

    engine: str = "diffusette"
    model_name: str
    folder: str
    precision: str = ""
    """Calls of the U-Net."""
    target: str = ""
    provider: str
    """The one that really ran."""
    memory: str
    threads: int
    width: int | None
    height: int | None
    steps: int | None
    count: int
    """Images a request."""
    guidance: float | None = None
    sampler: str = ""
    speed: str = "exact"
    family: str = ""
    start_latency: float | None = None
    """From starting the process to the open bundle."""
    import_latency: float | None = None
    load_latency: float | None = None
    first_latency: float | None = None
    """Of the first request, which opens the graphs."""
    latency: Latency | None = None
    """Of a request after the first and the warm-up."""
    throughput: float | None = None
    """Images a second: `count` / mean latency."""
    unet_call: Latency | None = None
    """Of one U-Net call."""
    components: dict[str, ComponentCost] = {}
    max_ram: int | None = None
    """Peak resident memory of the whole process, mapped weights included."""
    max_anonymous: int | None = None
    """Peak of what the system cannot drop and read again."""
    max_vram: int | None = None
    """Peak device memory of the process on NVIDIA; none elsewhere."""
    cold: Cold | None = None
    fidelity: Fidelity | None = None
    judged: PromptFidelity | None = None
    likened: Likened | None = None
    """Its image against another engine's, where both started from the same noise."""
    likened_demo: Likened | None = None
    """The same for the demo model, whose images are meaningful: means over a few."""
    memory_over_time: tuple[tuple[float, int, int | None], ...] = ()
    """Seconds since the start, resident and anonymous bytes: the largest of each span of time."""
    latencies: tuple[float, ...] = ()
    """Every timing behind `latency`."""
    notes: tuple[str, ...] = ()
    error: str = ""
    """Why it could not be measured, or not to the end."""


class Comparison(msgspec.Struct, frozen=True):
    """Two bundles, or a bundle and another engine, under the same settings, in alternating runs."""

    model_name: str
    versus: str
    provider: str
    memory: str
    threads: int
    width: int | None
    height: int | None
    steps: int | None
    count: int
    latency: Ratio | None
    """Time of the model over time of `versus`; below 1 the model is faster. None where comparing is refused."""
    components: dict[str, Ratio] = {}
    """Ratios of the components that both have; for the U-Net, all its calls of a request."""
    refused: str = ""
    """Why."""
    note: str = ""
    """Further remarks."""


class Report(msgspec.Struct, frozen=True):
    """Everything that was measured, and how."""

    made_by: str
    date: str
    """UTC, ISO 8601, of the start."""
    machine: Machine
    noise: Noise
    prompt: str
    seed: int
    warmup: int
    repeats: int
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    profile: str = ""
    advice: tuple[str, ...] = ()
    """Result of `--advise`."""
    complete: bool = False
    """False while it runs, and after an interruption."""
    schema: int = SCHEMA

    def failure(self) -> str:
        """Why nothing could be measured, or why what was to be compared could not be; empty where all is well."""
        if all(row.error for row in self.rows):
            return f"nothing could be measured: {self.rows[0].error}" if self.rows else "nothing was measured"
        return next((f"no comparison: {comparison.refused}" for comparison in self.comparisons if comparison.refused), "")


def row(contender: Contender, warmup: int) -> Row:
    """The results of `contender` so far; its first request and the `warmup` after it are not in the statistics."""
    job, opened = contender.job, contender.opened
    measured = contender.drawn[1 + warmup :]
    seconds = [drawn.latency for drawn in measured]
    total = latency(seconds)
    first, last = (contender.drawn[0], contender.drawn[-1]) if contender.drawn else (None, None)
    peak = contender.memory.peak() if contender.memory else None
    return Row(
        engine=job.engine,
        model_name=opened.model_name if opened else "",
        folder=job.folder or "",
        precision=opened.precision if opened else job.variant,
        target=opened.target if opened else "",
        provider=opened.provider if opened else job.provider,
        memory=opened.memory if opened else job.memory,
        threads=opened.threads if opened else job.threads,
        width=first.width if first else job.width,
        height=first.height if first else job.height,
        steps=last.steps if last else job.steps,
        count=job.count,
        guidance=first.guidance if first else job.guidance,
        sampler=first.sampler if first else job.sampler or "",
        speed=job.speed,
        family=opened.family if opened else "",
        start_latency=contender.start_latency,
        import_latency=opened.import_latency if opened else None,
        load_latency=opened.load_latency if opened else None,
        first_latency=first.latency if first else None,
        latency=total,
        throughput=job.count / total.mean if total else None,
        unet_call=latency([end - start for drawn in measured for name, start, end in drawn.calls if name == "unet"]),
        components=_components(contender, measured),
        max_ram=peak.rss if peak else None,
        max_anonymous=peak.anonymous if peak else None,
        max_vram=contender.memory.peak_vram() if contender.memory else None,
        memory_over_time=contender.memory.over_time(POINTS) if contender.memory else (),
        latencies=tuple(seconds),
        notes=first.notes if first else (),
        error=contender.failure,
    )


def _components(contender: Contender, measured: list[Drawn]) -> dict[str, ComponentCost]:
    """The costs by component; memory peaks count the first requests too, since graphs are opened there."""
    found: dict[str, ComponentCost] = {}
    for name in dict.fromkeys(name for drawn in measured for name, _, _ in drawn.calls):
        seconds = tuple(sum(end - start for other, start, end in drawn.calls if other == name) for drawn in measured)
        summary = latency(seconds)
        assert summary is not None
        spans = [(start, end) for drawn in contender.drawn for other, start, end in drawn.calls if other == name]
        peak = contender.memory.peak_within(spans) if contender.memory else None
        calls = sum(other == name for other, _, _ in measured[0].calls)
        found[name] = ComponentCost(summary, calls, peak.rss if peak else None, peak.anonymous if peak else None, seconds)
    return found


def flat(one: Row) -> dict[str, Scalar]:
    """`one` with a name for each number: latency_mean, unet_call_latency_p50, text_encoder_latency_p50, max_ram, …"""
    result: dict[str, Scalar] = {}
    for name, value in _fields(one):
        if isinstance(value, Latency):
            head = name if name.endswith("latency") else f"{name}_latency"
            result |= {f"{head}_{part}": number for part, number in _fields(value)}
        elif name == "components":
            for component, cost in one.components.items():
                result |= {f"{component}_latency_{part}": number for part, number in _fields(cost.latency) if part != "count"}
                result |= {f"{component}_{part}": number for part, number in _fields(cost) if part not in {"latency", "latencies"}}
        elif name == "notes":
            result[name] = "; ".join(one.notes)
        elif name in {"fidelity", "judged", "likened", "likened_demo", "cold"}:
            result |= _flat_part(name, value)
        elif name not in {"latencies", "memory_over_time"}:
            result[name] = value
    return result


def _flat_part(name: str, part: Fidelity | PromptFidelity | Likened | Cold | None) -> dict[str, Scalar]:
    """A part's numbers with names of their own; none where it was not measured."""
    if isinstance(part, Fidelity):
        means = {
            f"{name}_{kind}": sum(values) / len(values) for kind, values in (("psnr", part.psnr), ("ssim", part.ssim), ("gmsd", part.gmsd))
        }
        return {f"{name}_to": part.reference_precision, **means, **{f"{component}_snr": db for component, db in part.components.items()}}
    if isinstance(part, PromptFidelity):
        return {f"{name}_{key}": value for key, value in _fields(part) if key not in {"seen", "seconds"}}
    if isinstance(part, Likened):
        return {f"{name}_to": part.to, **{f"{name}_{key}": value for key, value in _fields(part.likeness)}}
    return {} if part is None else {f"{name}_{key}": value for key, value in _fields(part)}


def _fields(struct: msgspec.Struct) -> Iterable[tuple[str, Any]]:
    return ((name, getattr(struct, name)) for name in struct.__struct_fields__)
