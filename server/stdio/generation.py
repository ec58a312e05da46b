"""A request run as a job: phases with the time left, previews, and files written as soon as an image is done."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ...models.formats.atomic_file import replace_file
from ...runtime.metadata.image_files import Format
from ...runtime.provenance.marks import Marks
from ...runtime.request import Request
from ...runtime.result import Note, Picture, Step
from ...runtime.saving import ImageWriter
from ..phases import phase_of
from .local_worker import Facts, Job
from .resident_model import ResidentModel, Setup

Phase = Literal["opening", "encoding", "denoising", "decoding", "saving"]
ENDINGS: dict[str, tuple[Format, str]] = {"png": ("PNG", ".png"), "jpeg": ("JPEG", ".jpg"), "webp": ("WEBP", ".webp")}
"""Name of a format → the format, and the ending of its files."""
_STALE = 60.0
"""Seconds after which a temporary file belongs to nobody: writing an image takes less than one."""


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    phase: Phase
    image: int
    """Index of the image, from 0."""
    count: int
    step: int
    """Steps of this image done so far."""
    steps: int | None
    """Steps of this image; None until they are known."""
    done: float
    """Share of all steps that are done, 0 to 1."""
    eta: float | None
    """Seconds left, from the measured time of the steps; None until two are done."""


@dataclass(frozen=True)
class Preview:
    """An unfinished image."""

    image: int
    step: int
    picture: Image.Image


@dataclass(frozen=True)
class Drawn:
    """An image is done; `path` is None if it was not written to a file."""

    image: int
    picture: Picture
    data: bytes
    path: Path | None


Event = Progress | Preview | Drawn


@dataclass(frozen=True)
class Output:
    """What becomes of an image."""

    format: str = "png"
    """A name of `ENDINGS`."""
    folder: Path | None = None
    """Where files are written; None writes none."""
    quality: int = 95
    metadata: bool = True
    """Whether prompt and settings are in the file; the mark that AI made it always is."""
    writer: ImageWriter = field(default_factory=lambda: ImageWriter(Marks(sign="off")))
    """Writes the marks."""
    parent: Callable[[], bytes | None] = lambda: None
    """The file that the image starts from."""


def generate(
    model: ResidentModel, make: Callable[[], Request], output: Output, previews: int, seen: Callable[[Event], None], job: Job
) -> Facts:
    """Generate the request that `make` returns, and show what happens to `seen`; a preview after every `previews` steps, 0 for none."""
    pipeline = model.pipeline()
    request = make()
    output.writer.check_size(lambda: pipeline.size_of(request))
    clock = _Clock(seen, request.count)
    parent = output.parent() if request.init is not None else None
    seeds: list[int] = []
    flagged: list[int] = []

    def watch(component: str) -> None:
        job.check()
        clock.runs(component, first=component not in model.seen)

    def happened(event: Step | Note | Picture) -> None:
        job.check()
        if isinstance(event, Step):
            clock.stepped(event)
            if previews and event.number % previews == 0:
                model.watch = _unwatched
                seen(Preview(event.picture, event.number, pipeline.preview(event.denoised, cheap=True)))
                model.watch = watch
        elif isinstance(event, Picture):
            clock.show("saving")
            seen(_saved(len(seeds), event, output, parent))
            flagged.extend([len(seeds)] if event.flagged else [])
            seeds.append(event.seed)
            clock.finished()

    model.watch = watch
    try:
        result = pipeline.watch(request, happened, keep=False)
    finally:
        model.watch = _unwatched
    return {
        **model.facts,
        "seeds": seeds,
        "flagged": flagged,
        "provider": result.provider,
        "memory": result.plan,
        "safety": result.safety,
        "timings": result.timings,
        "signed": output.writer.signs,
        "notes": [*result.notes, *output.writer.notes],
    }


def open_model(model: ResidentModel, setup: Setup, seen: Callable[[Event], None], job: Job, *, warm: bool) -> Facts:
    """Choose the model of `setup` and open it. With `warm`, one step of an image that nobody sees opens every component too."""
    started = time.perf_counter()
    model.choose(setup)
    pipeline = model.pipeline()
    notes = list(pipeline.notes)
    if warm and pipeline.family.task == "text":
        shown = _only(Progress, seen)
        notes = list(generate(model, lambda: Request("", seed=0, steps=1), Output(), 0, shown, job)["notes"])
    return {**model.facts, "name": pipeline.manifest.source.name, "seconds": time.perf_counter() - started, "notes": notes}


def _only(kind: type[Event], seen: Callable[[Event], None]) -> Callable[[Event], None]:
    def shown(event: Event) -> None:
        if isinstance(event, kind):
            seen(event)

    return shown


def _unwatched(_component: str) -> None:
    pass


def _saved(index: int, picture: Picture, output: Output, parent: bytes | None) -> Drawn:
    kind, ending = ENDINGS[output.format]
    data = output.writer.encode(picture, kind, metadata=output.metadata, quality=output.quality, parent=parent)
    if output.folder is None:
        return Drawn(index, picture, data, None)
    path = output.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{picture.seed}-{secrets.token_hex(4)}{ending}"
    replace_file(path, data)
    return Drawn(index, picture, data, path)


def remove_stale_parts(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote to `folder`."""
    for path in folder.iterdir():
        if re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name) and time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)


class _Clock:
    """Where a request is, and how long it still takes."""

    def __init__(self, seen: Callable[[Event], None], count: int) -> None:
        self._seen = seen
        self._count = count
        self._now: dict[str, Any] = {"image": 0, "step": 0, "steps": None, "done": 0.0}
        self._phase: Phase | None = None
        self._times: list[float] = []
        """When steps of the current image ended."""
        self._pace: float | None = None
        """Seconds of a step."""
        self._finishing = 0.0
        """Seconds between the last step of an image and its file."""

    def runs(self, component: str, *, first: bool) -> None:
        """`component` runs next, for the first time if `first`. Within an image, phases only go forward: opening is the first component's,
        although each component opens its graph when it first runs.
        """
        phase: Phase = phase_of(component)
        if self._phase is None and first:
            phase = "opening"
        between = phase == "decoding" and self._now["step"] != self._now["steps"]  # the passes of a large image
        if not between and (self._phase is None or _ORDER.index(phase) > _ORDER.index(self._phase)):
            self.show(phase)

    def stepped(self, step: Step) -> None:
        """A step is done."""
        if step.number == 1:
            self._times.clear()
        self._times = [*self._times[-10:], time.perf_counter()]
        if len(self._times) > 1:
            self._pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self._now = {"image": step.picture, "step": step.number, "steps": step.total, "done": round(step.done, 4)}
        self.show("denoising")

    def finished(self) -> None:
        """An image is done."""
        if self._times:
            self._finishing = time.perf_counter() - self._times[-1]
        self._now |= {"image": self._now["image"] + 1, "step": 0}
        self._phase = "opening"  # the model is open: the next image begins with what comes after

    def show(self, phase: Phase) -> None:
        """Tell where the request is."""
        self._phase = phase
        self._seen(Progress(phase, count=self._count, eta=self._eta(), **self._now))

    def _eta(self) -> float | None:
        if self._pace is None or self._now["steps"] is None:
            return None
        left = self._now["steps"] * self._count * (1.0 - self._now["done"])
        return round(left * self._pace + self._finishing * (self._count - self._now["image"]), 3)


_ORDER: tuple[Phase, ...] = ("opening", "encoding", "denoising", "decoding", "saving")
