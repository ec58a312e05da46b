"""What is run, in which order.

```
for each combination:  a new process a bundle ─► open ─► first request ─► warm-up ─► repeats, bundles taking turns
                       the machine is probed before, in the middle and after, while nothing runs
then:                  pictures and components against the reference
```
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ..models.bundle import DEMO
from ..models.errors import RequestError
from ..runtime.parameters import tool
from . import fidelity
from .conditions import Watch, describe
from .contender import Contender
from .results import Comparison, Report, Row, row
from .summary import paired_ratio
from .worker import Job

FEWEST_PAIRS = 5
"""Below, no interval means anything."""


@dataclass(frozen=True)
class Settings:
    """What to measure. Each tuple is a side of the grid; None in it takes the model's default."""

    models: tuple[Path | None, ...] = (None,)
    """Folders of bundles; None is the demo model."""
    versus: Path | None = None
    """A bundle that each model is compared with, in turns."""
    reference: Path | None = None
    """A bundle whose pictures are taken for right."""
    prompt: str = "red apple, flat style, blue background"
    providers: tuple[str, ...] = ("auto",)
    memories: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = (0,)
    sizes: tuple[tuple[int | None, int | None], ...] = ((None, None),)
    """(width, height) in pixels."""
    steps: tuple[int | None, ...] = (None,)
    counts: tuple[int, ...] = (1,)
    """Pictures a request."""
    guidance: float | None = None
    sampler: str | None = None
    seed: int = 0
    warmup: int = 1
    """Requests after the first that are not counted."""
    repeats: int = 5
    """Requests that are."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0:
            raise RequestError(f"repeats {self.repeats}, warm-up {self.warmup}: expected at least 1 repeat and a warm-up of 0 or more")
        if self.versus is not None and self.repeats < FEWEST_PAIRS:
            raise RequestError(f"repeats {self.repeats}: a comparison needs at least {FEWEST_PAIRS}: leave --repeats out, or raise it")

    def jobs(self) -> list[Job]:
        """The grid: one job a combination, models first."""
        sides = (self.models, self.providers, self.memories, self.threads, self.sizes, self.steps, self.counts)
        return [
            Job(
                folder=str(model or DEMO),
                prompt=self.prompt,
                provider=provider,
                memory=memory,
                threads=threads,
                width=size[0],
                height=size[1],
                steps=steps,
                guidance=self.guidance,
                sampler=self.sampler,
                seed=self.seed,
                count=count,
            )
            for model, provider, memory, threads, size, steps, count in itertools.product(*sides)
        ]


def run(settings: Settings, advance: Callable[[str, float], None], keep: Callable[[Report], None]) -> Report:
    """Measure everything that `settings` asks for.

    `keep` gets the report as far as it is after each combination, and once more when Ctrl-C ends it before the time; what
    could not be measured is a row that says why.

    Raises:
        DiffusetteError: the reference cannot be opened or drawn with.
    """
    measurement = _Measurement(settings, advance)
    try:
        for _ in measurement.steps():
            keep(measurement.report())
    except BaseException:
        keep(measurement.report())
        raise
    measurement.complete = True
    report = measurement.report()
    keep(report)
    return report


class _Measurement:
    """The state of a run: what is finished, and what runs now."""

    def __init__(self, settings: Settings, advance: Callable[[str, float], None]) -> None:
        self.complete = False
        self._settings = settings
        self._jobs = settings.jobs()
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = describe()
        self._watch = Watch()
        self._rows: list[Row] = []
        self._pairs: list[tuple[Row, Row]] = []
        self._current: list[Contender] = []
        self._fidelity: fidelity.Fidelity | None = None
        self._advance = advance
        self._done = 0

    def steps(self) -> Iterator[None]:
        """Measure; yields after each part."""
        self._watch.probe()
        for job in self._jobs:
            self._measure(job)
            yield
        if self._settings.reference is not None:
            self._fidelity = fidelity.compare(self._jobs[0], self._settings.reference, lambda: self._tick("fidelity"))
            yield

    def report(self) -> Report:
        """All there is so far."""
        settings, noise = self._settings, self._watch.noise()
        return Report(
            made_by=tool(),
            date=self._date,
            machine=self._machine,
            noise=noise,
            prompt=settings.prompt,
            seed=settings.seed,
            warmup=settings.warmup,
            repeats=settings.repeats,
            rows=(*self._rows, *(row(contender, settings.warmup) for contender in self._current)),
            comparisons=tuple(compared(model, versus, noise.reasons) for model, versus in self._pairs),
            fidelity=self._fidelity,
            complete=self.complete,
        )

    def _measure(self, job: Job) -> None:
        settings = self._settings
        folders = [job.folder] if settings.versus is None else [job.folder, str(settings.versus)]
        rounds = 1 + settings.warmup + settings.repeats
        with ExitStack() as stack:
            for folder in folders:
                contender = Contender(msgspec.structs.replace(job, folder=folder))
                self._current.append(contender)
                stack.enter_context(contender)
            for number in range(rounds):
                for contender in self._current if number % 2 == 0 else self._current[::-1]:
                    self._tick(_words(job))
                    contender.draw()
                if number == rounds // 2:
                    self._watch.probe()
        self._watch.probe()
        self._watch.count()
        finished = [row(contender, settings.warmup) for contender in self._current]
        self._current.clear()
        self._rows += finished
        if len(finished) > 1:
            self._pairs.append((finished[0], finished[1]))

    def _tick(self, what: str) -> None:
        settings = self._settings
        requests = len(self._jobs) * (1 + settings.warmup + settings.repeats) * (1 if settings.versus is None else 2)
        total = requests + (0 if settings.reference is None else 2 * fidelity.PICTURES)
        self._advance(what, self._done / total)
        self._done += 1


def compared(model: Row, versus: Row, noisy: tuple[str, ...]) -> Comparison:
    """`model` against `versus`, whose requests were drawn in turns; refused for the reasons in `noisy`, or where one failed."""
    refused = ""
    if model.error or versus.error:
        refused = f"one of the two could not be measured: {model.error or versus.error}"
    elif noisy:
        refused = f"the machine was too noisy to compare: {'; '.join(noisy)}; close other programs and measure again"
    return Comparison(
        model_name=model.model_name,
        versus=versus.model_name,
        provider=model.provider,
        memory=model.memory,
        threads=model.threads,
        width=model.width,
        height=model.height,
        steps=model.steps,
        count=model.count,
        latency=None if refused else paired_ratio(model.latencies, versus.latencies),
        refused=refused,
    )


def names(text: str) -> tuple[str, ...]:
    """What stands between the commas of `text`."""
    return tuple(part.strip() for part in text.split(","))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers between the commas of `text`.

    Raises:
        RequestError: something else is there.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"{name}: {text!r}, but expected whole numbers with commas between them, such as 8,20") from None


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """The (width, height) in `text`, such as 512,768x512.

    Raises:
        RequestError: something else is there.
    """
    found: list[tuple[int, int]] = []
    for part in names(text):
        width, times, height = part.partition("x")
        if not width.isdecimal() or (times and not height.isdecimal()):
            raise RequestError(f"size: {part!r}, but expected pixels, such as 512 or 768x512, several with commas between them")
        found.append((int(width), int(height or width)))
    return tuple(found)


def _words(job: Job) -> str:
    """What sets this combination apart, in short."""
    size = "" if job.width is None else f"{job.width}×{job.height}"
    steps = "" if job.steps is None else f"{job.steps} steps"
    return " ".join(word for word in (Path(job.folder or "").name, job.provider, job.memory, size, steps) if word)
