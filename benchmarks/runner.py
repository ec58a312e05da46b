"""Run the measurements in order.

```
for each combination:  a new process a bundle ─► open ─► first request ─► warm-up ─► repeats, bundles taking turns
for each rival:        the same, the rival and the first bundle taking turns
                       the machine is probed before, in the middle and after, while nothing runs
then, untimed:         pictures and components against the reference; pictures before the judge
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ..runtime import pipeline
from ..runtime.metadata.record import tool
from ..runtime.request import Request
from .measure.cold_start import Cold, measure_cold
from .measure.contender import Contender
from .measure.machine_noise import Noise, Watch, describe
from .measure.statistics import Ratio, paired_ratio
from .measure.worker import Job
from .quality import fidelity, prompt_fidelity
from .quality.image_metrics import likeness, read
from .reporting import contact_sheet
from .reporting.formats import check
from .results import Comparison, Likened, Report, Row, row
from .rivals import duel, environments
from .rivals.catalog import RIVALS, Rival
from .settings import FEWEST_PAIRS, Settings


def run(settings: Settings, advance: Callable[[str, float], None], keep: Callable[[Report], None], picture: Path | None = None) -> Report:
    """Measure everything that `settings` asks for.

    `keep` receives the report after each combination, and once more on Ctrl-C; if a combination cannot run, its row gives the
    reason. A contact sheet of the images goes to `picture`.

    Raises:
        DiffusetteError: the reference cannot be opened or generated with, or rivals cannot be given what they need.
    """
    if picture is not None:
        check(picture)
    with TemporaryDirectory(prefix="diffusette-bench-") as folder:
        measurement = _Measurement(settings, advance, Path(folder))
        try:
            for _ in measurement.steps():
                keep(measurement.report())
        except BaseException:
            keep(measurement.report())
            raise
        measurement.complete = True
        report = measurement.report()
        keep(report)
        if picture is not None:
            contact_sheet.save(measurement.pictures(), picture)
    return report


WIDEST = 0.25
"""Largest width of a ratio's interval, as a share of the ratio."""


class _Measurement:
    """The state of a run: what is finished, and what runs now."""

    def __init__(self, settings: Settings, advance: Callable[[str, float], None], folder: Path) -> None:
        self.complete = False
        self._settings = settings
        self._folder = folder
        self._jobs = [msgspec.structs.replace(job, picture=str(folder / f"{number}.png")) for number, job in enumerate(settings.jobs())]
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = describe()
        self._watch = Watch()
        self._rows: list[tuple[Job, Row]] = []
        self._pairs: list[tuple[Row, Row]] = []
        self._current: list[Contender] = []
        self._advance = advance
        self._done = 0
        self._versions: dict[str, str] = {}

    def steps(self) -> Iterator[None]:
        """Measure; yields after each part."""
        settings = self._settings
        terms = duel.terms(self._jobs[0], settings.source, self._folder) if settings.against else None
        home = environments.folder_for(settings.environments) if settings.against else Path()
        self._watch.probe()
        if settings.together:
            self._rows += zip(self._jobs, self._turns([Contender(job) for job in self._jobs], self._jobs[0]), strict=True)
            yield
        for job in () if settings.together else self._jobs:
            self._measure(job)
            yield
        for rival in (RIVALS[name] for name in settings.against):
            for variant in rival.variants:
                assert terms is not None
                picture = str(self._folder / f"{rival.name}-{variant}.png")
                self._against(rival, msgspec.structs.replace(terms, engine=rival.name, variant=variant, picture=picture), home)
                self._versions |= environments.versions(home, [rival.name])
                yield
        self._liken()
        if settings.reference is not None:
            for job in self._distinct():
                found = fidelity.compare(job, settings.reference, lambda: self._tick("fidelity"))
                self._note(job, fidelity=found)
                yield
        if settings.judge:
            for job in self._distinct():
                self._note(job, judged=self._judge(job))
                yield

    def report(self) -> Report:
        """All there is so far."""
        settings, noise = self._settings, self._watch.noise()
        return Report(
            made_by=tool(),
            date=self._date,
            machine=msgspec.structs.replace(self._machine, packages={**self._machine.packages, **self._versions}),
            noise=noise,
            prompt=settings.prompt,
            seed=settings.seed,
            warmup=settings.warmup,
            repeats=settings.repeats,
            profile=settings.profile or "",
            rows=(*(one for _, one in self._rows), *(row(contender, settings.warmup) for contender in self._current)),
            comparisons=tuple(compared(model, versus, noise) for model, versus in self._pairs),
            complete=self.complete,
        )

    def pictures(self) -> list[tuple[str, Path]]:
        """Words and file of each row's first image."""
        return [(contact_sheet.words(one), Path(job.picture)) for job, one in self._rows if job.picture and Path(job.picture).exists()]

    def _measure(self, job: Job) -> None:
        settings = self._settings
        cold = measure_cold(job) if settings.cold else None
        folders = [job.folder] if settings.versus is None else [job.folder, str(settings.versus)]
        jobs = [job, *(msgspec.structs.replace(job, folder=folder, picture=f"{job.picture}.versus.png") for folder in folders[1:])]
        finished = self._turns([Contender(one) for one in jobs], job)
        self._rows += [
            (one, with_cold(found, cold if number == 0 else None)) for number, (one, found) in enumerate(zip(jobs, finished, strict=True))
        ]
        if len(finished) > 1:
            self._pairs.append((finished[0], finished[1]))

    def _against(self, rival: Rival, job: Job, home: Path) -> None:
        """The rival alone, or in turns with the first bundle where there are repeats enough for a ratio."""
        failed = Contender(job)
        try:
            job, command = duel.start(rival, job, home, lambda what: self._advance(what, self._done / self._total()))
        except environments.UnavailableError as error:
            failed.failure = str(error)
            self._rows.append((job, row(failed, 0)))
            return
        paired = self._settings.repeats >= FEWEST_PAIRS and not self._rows[0][1].error
        ours = [Contender(self._jobs[0])] if paired else []
        *first, found = self._turns([*ours, Contender(job, command)], job)
        self._rows.append((job, found))
        if first and not found.error:
            self._pairs.append((first[0], found))

    def _turns(self, contenders: list[Contender], job: Job) -> list[Row]:
        """Open all of `contenders`, let them generate in turns, and return their rows."""
        settings = self._settings
        rounds = 1 + settings.warmup + settings.repeats
        with ExitStack() as stack:
            for contender in contenders:
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
        return finished

    def _liken(self) -> None:
        """Compare the images of rows that started from the same noise with diffusers' in fp32, or else with the first row's."""
        drawn = [number for number, (job, one) in enumerate(self._rows) if not one.error and Path(job.picture).exists()]
        rivals = [number for number in drawn if self._rows[number][0].engine == "diffusers" and self._rows[number][0].variant == "fp32"]
        if not self._settings.against or not drawn:
            return
        reference = (rivals or drawn)[0]
        expected, against = read(Path(self._rows[reference][0].picture)), self._rows[reference][1]
        for number in drawn:
            job, one = self._rows[number]
            rival = RIVALS.get(job.engine)
            pixels = read(Path(job.picture))
            if pixels.shape != expected.shape or (rival is not None and not rival.same_noise):
                continue
            found = Likened(f"{against.engine} {against.precision}", likeness(expected, pixels))
            self._rows[number] = (job, msgspec.structs.replace(one, likened=found))

    def _distinct(self) -> list[Job]:
        """Our jobs that draw different images and could be measured."""
        return list({_drawing(job): job for job, one in reversed(self._rows) if job.engine == "diffusette" and not one.error}.values())[
            ::-1
        ]

    def _judge(self, job: Job) -> prompt_fidelity.PromptFidelity:
        template = Request(
            "", width=job.width, height=job.height, steps=job.steps, guidance=job.guidance, sampler=job.sampler, speed=job.speed
        )
        with pipeline.load(job.folder, job.provider, job.memory, threads=job.threads) as drawer:
            return prompt_fidelity.score(drawer, template, self._settings.judge, lambda: self._tick("judge"))

    def _note(self, drawing: Job, **fields: object) -> None:
        """Write `fields` into every row that generates as `drawing` does."""
        self._rows = [
            (job, msgspec.structs.replace(one, **fields) if _drawing(job) == _drawing(drawing) and not one.error else one)
            for job, one in self._rows
        ]

    def _tick(self, what: str) -> None:
        self._advance(what, self._done / self._total())
        self._done += 1

    def _total(self) -> int:
        """The number of images to generate."""
        settings = self._settings
        rounds = 1 + settings.warmup + settings.repeats
        variants = sum(len(RIVALS[name].variants) for name in settings.against)
        requests = len(self._jobs) * rounds * (1 if settings.versus is None else 2)
        requests += variants * rounds * (2 if settings.repeats >= FEWEST_PAIRS else 1)
        drawings = len({_drawing(job) for job in self._jobs})
        return requests + drawings * (settings.judge + (0 if settings.reference is None else 2 * fidelity.PICTURES))


def with_cold(one: Row, cold: Cold | None) -> Row:
    """`one` with what a cold start took."""
    return one if cold is None else msgspec.structs.replace(one, cold=cold)


def compared(model: Row, versus: Row, noise: Noise) -> Comparison:
    """`model` against `versus`, whose requests were generated in turns.

    Refused where one of them failed, where other programs took part of the processor, which need not slow both down alike, and where
    the pairs do not agree. A machine that is fast now and slow then is no reason: what it does to a pair shows in the interval.
    """
    ratio, components, refused = None, dict[str, Ratio](), ""
    if model.error or versus.error:
        refused = f"one of the two could not be measured: {model.error or versus.error}"
    elif noise.disturbed:
        refused = f"the machine was too noisy to compare: {noise.disturbed}; close other programs and measure again"
    else:
        ratio = paired_ratio(model.latencies, versus.latencies)
        parts = {
            name: paired_ratio(cost.latencies, versus.components[name].latencies)
            for name, cost in model.components.items()
            if name in versus.components
        }
        components = {name: one for name, one in parts.items() if not wide(one)}
        if wide(ratio):
            refused = (
                f"the machine was too noisy to compare: the ratio of {ratio.pairs} pairs lies anywhere from {ratio.low:.2f} to "
                f"{ratio.high:.2f} (limit: {WIDEST:.0%} of it); measure again with more --repeats"
            )
            ratio, components = None, {}
    return Comparison(
        model_name=model.model_name,
        versus=versus.model_name if versus.engine == "diffusette" else f"{versus.engine} {versus.precision}",
        provider=model.provider,
        memory=model.memory,
        threads=model.threads,
        width=model.width,
        height=model.height,
        steps=model.steps,
        count=model.count,
        latency=ratio,
        components=components,
        refused=refused,
    )


def wide(ratio: Ratio) -> bool:
    """Whether the interval of `ratio` is too wide to report."""
    return ratio.high - ratio.low > WIDEST * ratio.ratio


def _drawing(job: Job) -> tuple[object, ...]:
    """The settings that affect an image."""
    return (job.folder, job.provider, job.width, job.height, job.steps, job.guidance, job.sampler, job.speed, job.engine)


def _words(job: Job) -> str:
    """A short label of this combination."""
    size = "" if job.width is None else f"{job.width}×{job.height}"
    steps = "" if job.steps is None else f"{job.steps} steps"
    engine = "" if job.engine == "diffusette" else f"{job.engine} {job.variant}"
    speed = "" if job.speed == "exact" else job.speed
    return " ".join(word for word in (engine, Path(job.folder or "").name, job.provider, job.memory, size, steps, speed) if word)
