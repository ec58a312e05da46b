"""The parts of the full-size table: minutes each, in one process or two, each kept when it is done.

An image becomes a row of the table: one step to open everything, then a whole image. A pair becomes a ratio with an interval: two
open engines generate one step in turns, which an unsteady machine hardly disturbs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from ..runtime.engine.hardware import processor
from .measure.contender import Contender
from .measure.machine_noise import Watch
from .measure.statistics import latency
from .measure.worker import Drawn, Job
from .results import Comparison, Row, row
from .rivals import duel, environments
from .rivals.catalog import RIVALS, Rival
from .runner import compared

STEPS = 20
PAIRS = 9
ROOT = Path(__file__).resolve().parents[1]
Tick = Callable[[str], None]
OPENVINO = Rival(
    name="diffusette-openvino",
    requirements=(
        f"--editable={ROOT}",
        *(("onnxruntime==1.31.1", "onnxruntime-ep-openvino==1.8.1") if "Intel" in processor() else ("onnxruntime-openvino==1.24.1",)),
    ),
    script="",
    variants=(),
    documentation="",
)
"""Packages of our runtime on OpenVINO; its plug-in supports Intel's processors only."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: an engine, or one of our bundles on a provider, and how it generates."""

    engine: str
    variant: str
    """A precision; of ours the speed."""
    provider: str = ""
    """Of our engine."""

    @property
    def name(self) -> str:
        """Its label."""
        return " ".join(word for word in (self.engine, self.provider, self.variant) if word)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one part."""

    key: str
    """Key of the measurement; changes with it."""
    date: str
    seconds: float
    probes: tuple[float, ...]
    others: float | None
    rows: tuple[Row, ...] = ()
    steps: int = 0
    """That were measured for the row."""
    comparisons: tuple[Comparison, ...] = ()
    packages: dict[str, str] = {}

    @property
    def failed(self) -> bool:
        """Whether there is something that could not be measured, or not be compared."""
        return any(row.error for row in self.rows) or any(found.refused for found in self.comparisons)


@dataclass(frozen=True)
class Place:
    """The request of all entries, and the folders."""

    source: Path
    bundles: Mapping[str, Path]
    """Our bundles by provider, exported from `source`."""
    pictures: Path
    home: Path
    """Folder of the environments and of other engines' weights."""
    terms: Job
    """`duel.terms`: nothing left open."""

    def key(self, *entries: Entry) -> str:
        """A key from the weights of `entries`, the pins of their environments and the settings."""
        settled = str(msgspec.structs.replace(self.terms, folder=None, latents="", picture=""))
        parts = [settled]
        for entry in entries:
            if entry.engine == "diffusette":
                parts.append((self.bundles[entry.provider] / "manifest.json").read_text("utf-8"))
                parts += OPENVINO.requirements[1:] if entry.provider == "openvino" else ()
            else:
                parts.append(environments.fingerprint(self.source, RIVALS[entry.engine]))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def picture(self, entry: Entry) -> Path:
        """Path of the image of `entry`."""
        return self.pictures / f"{entry.name.replace(' ', '-')}.png"

    def contender(self, entry: Entry, tick: Tick, *, draw: bool) -> Contender:
        """A process for `entry`, which keeps its image if `draw`. What it needs is made, or else it has failed already."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        kept = str(self.picture(entry)) if draw else ""
        job = msgspec.structs.replace(self.terms, engine=entry.engine, variant=entry.variant, picture=kept)
        if entry.engine == "diffusette":
            folder = str(self.bundles[entry.provider])
            job = msgspec.structs.replace(job, folder=folder, provider=entry.provider, memory="resident", speed=entry.variant)
            if entry.provider == "cpu":
                return Contender(job)
        try:
            if entry.engine == "diffusette":
                python = environments.python_of(OPENVINO, self.home, tick)
                return Contender(job, [str(python), "-m", f"{__package__}.measure.worker", msgspec.json.encode(job).decode()])
            return Contender(*duel.start(RIVALS[entry.engine], job, self.home, tick))
        except environments.UnavailableError as error:
            failed = Contender(job)
            failed.failure = str(error)
            return failed


def picture(place: Place, entry: Entry, longest: float, tick: Tick) -> Part:
    """A whole image of `entry`, in as many steps as fit into `longest` seconds where all steps are alike."""
    contender = place.contender(entry, tick, draw=True)
    with _Timed(place, contender) as timed:
        tick("opening, and one step")
        contender.draw(1)
        timed.watch.probe()
        steps = affordable(contender.drawn[-1], longest) if contender.drawn and contender.job.speed == "exact" else STEPS
        tick(f"an image of {steps} steps")
        contender.draw(steps)
    found = row(contender, warmup=0)
    return timed.part(place.key(entry), rows=(whole(found, STEPS),), steps=found.steps or 0)


def pair(place: Place, entry: Entry, other: Entry, tick: Tick) -> Part:
    """`entry` and `other` in turns, a step and a decoding at a time."""
    contenders = [place.contender(one, tick, draw=False) for one in (entry, other)]
    with _Timed(place, *contenders) as timed:
        for number in range(1 + PAIRS):
            tick(f"pair {number} of {PAIRS}" if number else "opening")
            for contender in contenders if number % 2 == 0 else contenders[::-1]:
                contender.draw(1)
        timed.watch.probe()
    model, versus = (whole(row(contender, warmup=0), STEPS) for contender in contenders)
    found = compared(model, versus, timed.watch.noise())
    note = f"computed from {PAIRS} pairs of one step and one decoding"
    return timed.part(place.key(entry, other), comparisons=(msgspec.structs.replace(found, model_name=entry.name, note=note),))


def pictures(places: Sequence[Place], entry: Entry, tick: Tick) -> Part:
    """An image of `entry` in each of `places`, for how they look alone."""
    with _Timed(places[0]) as timed:
        for number, place in enumerate(places):
            tick(f"image {number + 1} of {len(places)}")
            with place.contender(entry, tick, draw=True) as contender:
                contender.draw(STEPS)
    return timed.part(places[0].key(entry))


class _Timed:
    """Opens contenders, and notes when and under what conditions they worked."""

    def __init__(self, place: Place, *contenders: Contender) -> None:
        self.watch = Watch()
        self._home = place.home
        self._contenders = contenders
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self.watch.probe()
        for contender in self._contenders:
            self._stack.enter_context(contender)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.watch.probe()
        self.watch.count()
        self._seconds = time.monotonic() - self._started

    def part(self, key: str, *, rows: tuple[Row, ...] = (), steps: int = 0, comparisons: tuple[Comparison, ...] = ()) -> Part:
        """The result."""
        noise = self.watch.noise()
        rivals = [contender.job.engine for contender in self._contenders if contender.job.engine in RIVALS]
        return Part(
            key=key,
            date=self._date,
            seconds=self._seconds,
            probes=noise.probes,
            others=noise.others,
            rows=rows,
            steps=steps,
            comparisons=comparisons,
            packages=environments.versions(self._home, rivals),
        )


def affordable(drawn: Drawn, longest: float) -> int:
    """The number of steps that fit into `longest` seconds, estimated from a first image of one step; at least 4."""
    calls = [end - start for name, start, end in drawn.calls if name == "unet"]
    if not math.isfinite(longest) or not calls:
        return STEPS
    step = len(calls) * min(calls)  # the first may have opened the graph
    return max(4, min(STEPS, int((longest - (drawn.latency - sum(calls))) / step)))


def whole(one: Row, steps: int) -> Row:
    """`one` as it would be with `steps` steps of the same length; unchanged where it has them, or was not measured."""
    unet = one.components.get("unet")
    if one.error or one.steps is None or one.steps >= steps or unet is None:
        return one
    more = tuple(seconds * (steps - one.steps) / one.steps for seconds in unet.latencies)
    latencies = tuple(seconds + extra for seconds, extra in zip(one.latencies, more, strict=True))
    longer = tuple(seconds + extra for seconds, extra in zip(unet.latencies, more, strict=True))
    summary, within = latency(latencies), latency(longer)
    assert summary is not None
    assert within is not None
    cost = msgspec.structs.replace(unet, latency=within, latencies=longer, calls=unet.calls * steps // one.steps)
    return msgspec.structs.replace(
        one,
        steps=steps,
        latencies=latencies,
        latency=summary,
        throughput=one.count / summary.mean,
        components=one.components | {"unet": cost},
        notes=(*one.notes, f"{one.engine} {one.precision}: the time of {steps} steps is computed from {one.steps} measured ones"),
    )
