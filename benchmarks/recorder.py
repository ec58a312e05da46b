"""The components of a pipeline, each call noted down: when it ran, and on demand what went in and came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ..runtime import stem
from ..runtime.components import Components, Variant
from ..runtime.pipeline import Pipeline


class Call(NamedTuple):
    """One run of a component, in seconds of `time.perf_counter`, which all processes of a machine share."""

    component: str
    start: float
    end: float


_Arrays = Mapping[str, NDArray[Any]]


class Exchange(NamedTuple):
    """What went into a component and what came out."""

    component: str
    feeds: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class Recorder(Components):
    """Passes everything on to `inner`. Not for several threads."""

    def __init__(self, inner: Components) -> None:
        self.bundle, self.provider, self.plan, self.seconds = inner.bundle, inner.provider, inner.plan, inner.seconds
        self.calls: list[Call] = []
        self.exchanges: list[Exchange] | None = None
        """Set it to a list, and what goes in and comes out is kept there."""
        self._inner = inner
        self._stem: dict[str, NDArray[Any]] = {}
        self._seconds = 0.0

    def run(self, name: str, feeds: _Arrays, variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name` once; `Components.run`. A U-Net's stem is noted as the beginning of the call that it is made for."""
        started = time.perf_counter()
        outputs = self._inner.run(name, feeds, variant)
        ended = time.perf_counter()
        self.plan = self._inner.plan  # a leaner one, if memory ran out
        component, _, part = name.partition("/")
        if part == stem.NAME:
            self._stem, self._seconds = dict(feeds), ended - started
            return outputs
        self.calls.append(Call(component, started - self._seconds, ended))
        self._seconds = 0.0
        if self.exchanges is not None:
            self.exchanges.append(self._exchange(component, part, feeds, outputs))
        return outputs

    def _exchange(self, component: str, part: str, feeds: _Arrays, outputs: _Arrays) -> Exchange:
        """What the whole component was given and gave, where a stem came before; else what its graph `part` was."""
        whole = self.bundle.manifest.components[component]
        if part not in whole.graphs or not any(stem.carried(name) for name in whole.graphs[part].inputs):
            return Exchange("/".join(filter(None, (component, part))), dict(feeds), dict(outputs))
        given = {**self._stem, **feeds}
        return Exchange(component, {name: given[name] for name in whole.inputs}, {name: outputs[name] for name in whole.outputs})

    def notes(self) -> tuple[str, ...]:
        """What the sessions had to say."""
        return self._inner.notes()

    def cancel(self) -> None:
        """Stop what runs now."""
        self._inner.cancel()

    def close(self) -> None:
        """Give the memory back."""
        self._inner.close()


def recorded(pipeline: Pipeline) -> tuple[Pipeline, Recorder]:
    """`pipeline` with a recorder between it and its components."""
    recorder = Recorder(pipeline.components)
    return replace(pipeline, components=recorder), recorder
