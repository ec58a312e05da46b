"""The one model that is open: which one was asked for, how it is opened, and facts about models that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...models.bundle import Bundle, open_bundle
from ...models.families import FAMILIES
from ...runtime.engine import hardware, memory_plans
from ...runtime.engine.components import Watched
from ...runtime.images.safety_checker import Hiding, safety_of
from ...runtime.pipeline import Pipeline, load
from ...runtime.resolve import TINY_DECODER
from .error_codes import refusal_of

CACHE = "cache"
"""The folder of optimized graphs in a data folder."""


@dataclass(frozen=True)
class Setup:
    """A model and how it is opened; the fields are arguments of `runtime.pipeline.load`."""

    folder: Path
    provider: str = "auto"
    memory: str = "auto"
    threads: int = 0
    cache: Path | None = None
    """Folder for optimized graphs of large models; None keeps none."""
    safety: bool = True
    flagged: Hiding = "black"
    refiner: Path | None = None
    device: int = 0


class ResidentModel:
    """Holds at most one open model. `watch` is called with the name of each component before it runs."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.watch: Callable[[str], None] = _ignore
        self.seen: set[str] = set()
        """Components that ran since the model was opened or closed."""
        self._pipeline: Pipeline | None = None
        self._opened: Setup | None = None

    def choose(self, setup: Setup) -> None:
        """Use the model of `setup` from now on. The other one is closed."""
        if setup != self._opened:
            self.close()
            self._pipeline = self._opened = None
        self.setup = setup

    def pipeline(self) -> Pipeline:
        """The chosen model, opened if it is not yet; raises what `load` raises."""
        if self._pipeline is None or self._opened != self.setup:
            options = {name: value for name, value in asdict(self.setup).items() if name != "folder"}
            opened = load(self.setup.folder, **options)
            runner = Watched(opened.components, self._watched)
            self._pipeline = Pipeline(
                opened.bundle, runner, notes=opened.notes, safety=opened.safety, flagged=opened.flagged, refiner=opened.refiner
            )
            self._opened = self.setup
        return self._pipeline

    def cancel(self) -> None:
        """Stop the running model call, from any thread."""
        if self._pipeline is not None:
            self._pipeline.cancel()

    def close(self) -> None:
        """Free the memory; the model opens again when it is needed."""
        self.seen.clear()
        if self._pipeline is not None:
            self._pipeline.close()

    @property
    def facts(self) -> dict[str, Any]:
        """The chosen model, and whether it is open."""
        opened = self._pipeline
        if opened is None:
            return {"model": str(self.setup.folder), "open": False}
        components, safety = opened.components, safety_of(opened.components, checks=opened.safety)
        where = {"provider": components.provider.name, "memory": components.plan}
        return {"model": str(self.setup.folder), "open": True, **where, "safety": safety}

    def _watched(self, component: str) -> None:
        self.watch(component)
        self.seen.add(component)


def _ignore(_component: str) -> None:
    pass


def describe(folder: Path, width: int = 0, height: int = 0) -> dict[str, Any]:
    """Facts about the model in `folder`, and the memory that it needs for an image of that size; nothing is opened.

    A model that cannot be opened has an `error` in place of facts.
    """
    try:
        return {"model": str(folder), **_facts(open_bundle(folder), width, height)}
    except Exception as error:  # noqa: BLE001  # a damaged model among others is a fact about it
        refusal = refusal_of(error)
        return {"model": str(folder), "error": {"code": refusal.code, "message": str(refusal)}}


def _facts(bundle: Bundle, width: int, height: int) -> dict[str, Any]:
    manifest = bundle.manifest
    family, free = FAMILIES[manifest.family], hardware.memory()
    plans = memory_plans.estimate(bundle, width, height)
    return {
        "name": manifest.source.name,
        "family": manifest.family,
        "task": family.task,
        "licence": manifest.source.licence,
        "safety": safety_of(manifest.components, checks=True),
        "target": manifest.target,
        "bytes": sum(file.size for file in manifest.files.values()),
        "defaults": msgspec.to_builtins(manifest.defaults),
        "decoders": ["vae", *(["tiny"] if TINY_DECODER in manifest.components else [])],
        "memory": {"plans": plans, "auto": "resident" if free is None else memory_plans.fitting(plans, free[0])},
    }
