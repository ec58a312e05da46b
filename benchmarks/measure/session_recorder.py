"""Record every call of a pipeline's components: its time and, on demand, its inputs and outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ...runtime.engine.components import Forwarder, Runner
from ...runtime.engine.session_pool import Variant
from ...runtime.pipeline import Pipeline
from ...runtime.sampling import shared_prefix


class Call(NamedTuple):
    """One run of a component, in seconds of `time.perf_counter`, which all processes of a machine share."""

    component: str
    start: float
    end: float


_Arrays = Mapping[str, NDArray[Any]]


class Exchange(NamedTuple):
    """Inputs and outputs of a component."""

    component: str
    feeds: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class Recorder(Forwarder):
    """Records the time of every call. Not for several threads."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []
        self.exchanges: list[Exchange] | None = None
        """Set it to a list to keep inputs and outputs there."""
        self._stem: dict[str, NDArray[Any]] = {}
        self._seconds = 0.0

    def run(self, name: str, feeds: _Arrays, variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name` once. The time of a U-Net's shared prefix counts towards the call that uses its outputs."""
        started = time.perf_counter()
        outputs = super().run(name, feeds, variant)
        ended = time.perf_counter()
        component, _, part = name.partition("/")
        if part == shared_prefix.NAME:
            self._stem, self._seconds = dict(feeds), ended - started
            return outputs
        self.calls.append(Call(component, started - self._seconds, ended))
        self._seconds = 0.0
        if self.exchanges is not None:
            self.exchanges.append(self._exchange(component, part, feeds, outputs))
        return outputs

    def _exchange(self, component: str, part: str, feeds: _Arrays, outputs: _Arrays) -> Exchange:
        """Inputs and outputs of the whole component if a shared prefix ran before; else of its graph `part`."""
        whole = self.bundle.manifest.components[component]
        if part not in whole.graphs or not any(shared_prefix.carried(name) for name in whole.graphs[part].inputs):
            return Exchange("/".join(filter(None, (component, part))), dict(feeds), dict(outputs))
        given = {**self._stem, **feeds}
        return Exchange(component, {name: given[name] for name in whole.inputs}, {name: outputs[name] for name in whole.outputs})


def recorded(pipeline: Pipeline) -> tuple[Pipeline, Recorder]:
    """`pipeline` with a recorder between it and its components."""
    recorder = Recorder(pipeline.components)
    return Pipeline(
        pipeline.bundle, recorder, notes=pipeline.notes, safety=pipeline.safety, flagged=pipeline.flagged, refiner=pipeline.refiner
    ), recorder
