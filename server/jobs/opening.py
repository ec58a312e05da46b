"""The model in memory: opening it, warming it up, and knowing which component runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image as Pictures

from ...models.errors import Cancelled, DiffusetteError
from ...runtime.engine.components import Watched
from ...runtime.images.safety_checker import Hiding
from ...runtime.pipeline import Pipeline, load
from ...runtime.request import Request
from .events import EventLog
from .models import Offer


@dataclass(frozen=True)
class Machine:
    """How models are opened."""

    provider: str = "auto"
    memory: str = "auto"
    threads: int = 0
    safety: bool = True
    flagged: Hiding = "black"
    device: int = 0


class Resident:
    """Holds at most one open model."""

    def __init__(self, machine: Machine, events: EventLog) -> None:
        self.model: str | None = None
        """Id of the open model."""
        self._machine = machine
        self._events = events
        self._pipeline: Pipeline | None = None
        self._runs: Callable[[str], None] = _ignore

    def open(self, offer: Offer, check: Callable[[], None]) -> Pipeline:
        """The pipeline of a model; another one is closed first. `check` may raise `Cancelled` between the phases of opening."""
        if self.model == offer.id and self._pipeline is not None:
            return self._pipeline
        self.close()
        check()
        machine = self._machine
        checked = partial(load, safety=machine.safety, flagged=machine.flagged, device=machine.device)
        opened = checked(offer.bundle.folder, machine.provider, machine.memory, threads=machine.threads)
        runner = Watched(opened.components, self._run)
        self._pipeline = Pipeline(
            opened.bundle, runner, notes=opened.notes, safety=opened.safety, flagged=opened.flagged, refiner=opened.refiner
        )
        try:
            with self.watching(lambda _component: check()):
                check()
                warm_up(self._pipeline, offer)
                check()
        except BaseException:
            self.close()
            raise
        self.model = offer.id
        self._events.publish("model", {"resident": offer.id})
        return self._pipeline

    def close(self) -> None:
        """Free the memory."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None
        if self.model is not None:
            self.model = None
            self._events.publish("model", {"resident": None})

    def _run(self, component: str) -> None:
        self._runs(component)

    def cancel(self) -> None:
        """Stop the running model call, from any thread."""
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.cancel()

    @contextmanager
    def watching(self, runs: Callable[[str], None]) -> Generator[None]:
        """Within this context, `runs` is called with the name of each component before it runs; what it raises stops the generation."""
        before, self._runs = self._runs, runs
        try:
            yield
        finally:
            self._runs = before

    def facts(self) -> dict[str, Any]:
        """Provider and memory plan."""
        opened = self._pipeline
        return {} if opened is None else {"provider": opened.components.provider.name, "plan": opened.components.plan}


def _ignore(_component: str) -> None:
    pass


def warm_up(pipeline: Pipeline, offer: Offer) -> None:
    """Open the sessions with the smallest image there is, so that opening a model is what takes the time of opening it.

    Only where sessions stay open, and where they do not depend on the size of the image.
    """
    if pipeline.components.plan != "resident" or pipeline.components.provider.fixed_shapes:
        return
    side = 8 * offer.manifest.latent.downscale
    init = Pictures.new("RGB", (side, side)) if offer.needs_init else None
    try:
        for _ in pipeline.steps(Request("", width=side, height=side, steps=1, seed=0, init=init)):
            pass
    except Cancelled:
        raise
    except DiffusetteError:
        return  # the job itself will say what is wrong
