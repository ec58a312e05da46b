"""The settings of a benchmark: a grid, and its notation on the command line."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from ..models.bundle import DEMO
from ..models.errors import RequestError
from ..runtime.engine import hardware
from ..runtime.request import MAX_GUIDANCE, number_of
from .measure.worker import Job
from .profiles import PROFILES
from .quality import prompt_fidelity
from .rivals.catalog import RIVALS

FEWEST_PAIRS = 5
"""Below, no interval means anything."""
MOST_REPEATS = 10_000
SAMPLER = "ddim"
"""A sampler that every engine has and computes in the same way."""


@dataclass(frozen=True)
class Settings:
    """The grid to measure. Each tuple is one side; None is the model's default."""

    models: tuple[Path | None, ...] = (None,)
    """Folders of bundles; None is the demo model."""
    versus: Path | None = None
    """A bundle that each model is compared with, in turns."""
    reference: Path | None = None
    """A bundle whose images are taken for right."""
    prompt: str = "red apple, flat style, blue background"
    providers: tuple[str, ...] = ("auto",)
    memories: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = (0,)
    sizes: tuple[tuple[int | None, int | None], ...] = ((None, None),)
    """(width, height) in pixels."""
    steps: tuple[int | None, ...] = (None,)
    speeds: tuple[str, ...] = ("exact",)
    """Speed presets; names of `runtime.sampling.speed.SPEEDS`."""
    counts: tuple[int, ...] = (1,)
    """Images a request."""
    guidance: float | None = None
    sampler: str | None = None
    seed: int = 0
    against: tuple[str, ...] = ()
    """Names of other engines (`rivals.RIVALS`) that draw the same with `source`."""
    source: Path | None = None
    """The diffusers folder that the first model was exported from."""
    environments: Path | None = None
    """Folder of the other engines; None is one in the user's cache."""
    judge: int = 0
    """Images for the judge to look at (`prompts`); 0 for none."""
    together: bool = False
    """All combinations are open at once and draw in turns, so that a machine that is fast now and slow then favours none."""
    cold: bool = False
    """Start once more with the bundle's files out of the system's cache."""
    profile: str | None = None
    """A published protocol (`profiles.PROFILES`) that sets what was left open."""
    warmup: int = 1
    """Requests after the first that are not counted."""
    repeats: int = 5
    """Requests that are."""

    def __post_init__(self) -> None:
        if not (1 <= self.repeats <= MOST_REPEATS and 0 <= self.warmup <= MOST_REPEATS):
            expected = f"expected 1 to {MOST_REPEATS} repeats and a warm-up of 0 to {MOST_REPEATS}"
            raise RequestError(f"repeats {self.repeats}, warm-up {self.warmup}: {expected}")
        for threads in self.threads:
            number_of("threads", threads, int, 0, hardware.most_threads())
        if self.guidance is not None:
            number_of("guidance", self.guidance, float, 0.0, MAX_GUIDANCE)
        if self.judge:
            prompt_fidelity.chosen(self.judge)
        if self.profile and self.profile not in PROFILES:
            raise RequestError(f"profile: {self.profile!r} is unknown: expected {' or '.join(PROFILES)}")
        for name in self.against:
            if name not in RIVALS:
                raise RequestError(f"against: {name!r} is unknown: expected one or more of {', '.join(RIVALS)}")
        if self.against and self.sampler not in {None, SAMPLER}:
            raise RequestError(f"sampler {self.sampler}: other engines are compared with {SAMPLER}, which all of them have: leave it out")
        if self.versus is not None and self.repeats < FEWEST_PAIRS:
            raise RequestError(f"repeats {self.repeats}: a comparison needs at least {FEWEST_PAIRS}: omit --repeats, or raise it")

    def jobs(self) -> list[Job]:
        """The grid: one job a combination, models first. A profile settles what was left open."""
        fixed = PROFILES.get(self.profile or "")
        wanted = tuple(fixed.steps if one is None and fixed else one for one in self.steps)
        sides = (self.models, self.providers, self.memories, self.threads, self.sizes, wanted, self.speeds, self.counts)
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
                guidance=fixed.guidance if fixed and self.guidance is None else self.guidance,
                sampler=self.sampler or (SAMPLER if self.against else fixed.sampler if fixed else None),
                speed=speed,
                seed=self.seed,
                count=count,
            )
            for model, provider, memory, threads, size, steps, speed, count in itertools.product(*sides)
        ]


def names(text: str) -> tuple[str, ...]:
    """The parts of `text` between commas."""
    return tuple(part.strip() for part in text.split(","))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers between the commas of `text`.

    Raises:
        RequestError: `text` has another form.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"{name}: {text!r}, expected whole numbers with commas between them, such as 8,20") from None


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """The (width, height) in `text`, such as 512,768x512.

    Raises:
        RequestError: `text` has another form.
    """
    found: list[tuple[int, int]] = []
    for part in names(text):
        width, times, height = part.partition("x")
        if not width.isdecimal() or (times and not height.isdecimal()):
            raise RequestError(f"size: {part!r}, expected pixels, such as 512 or 768x512, several with commas between them")
        found.append((int(width), int(height or width)))
    return tuple(found)
