"""The open sessions of a bundle, under a memory plan.

| plan | what is in memory | cost |
|---|---|---|
| resident | every component that was used | memory |
| sequential | one component at a time | each is opened again for each request |
| streamed | one component at a time, weights mapped from disk, pictures decoded in tiles | U-Net calls take about twice the time |

`auto` takes the first that fits into what the machine has free.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from numpy.typing import NDArray

from ..models.bundle import Bundle
from ..models.errors import BundleError, RequestError
from ..models.manifest import Component, Tensor
from . import machine
from .providers import Provider
from .session import Session, SessionOptions, open_session

Plan = Literal["resident", "sequential", "streamed"]
PLANS: tuple[Plan, ...] = get_args(Plan)

SHAPES = 2
"""Sessions of one component that are kept where a provider wants one for each picture size."""
ACTIVATIONS = 2.0
"""Memory allowed for a component, as a multiple of its files' bytes: prepacked weights and activations. An allowance, not a measurement."""


class Variant(NamedTuple):
    """A component with other weights than its file has."""

    key: tuple[str, ...]
    """What tells it from every other; never empty."""
    weights: Callable[[], Mapping[str, NDArray[Any]]]
    """Initializers to use instead of the file's, by name; made each time a session is opened."""


class Components:
    """The sessions of `bundle`, opened when they are first run. Threads may share it: one call runs at a time."""

    def __init__(self, bundle: Bundle, provider: Provider, plan: Plan, options: SessionOptions) -> None:
        self.bundle = bundle
        self.provider = provider
        self.plan: Plan = plan
        self.seconds: dict[str, float] = {}
        """Time spent inside each component so far, opening included."""
        self._options = options if plan != "streamed" else replace(options, prepack=False)
        self._open: OrderedDict[tuple[str, tuple[str, ...], tuple[tuple[str, int], ...]], Session] = OrderedDict()
        self._turn = threading.Lock()
        self._notes: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.bundle.manifest.components

    def get(self, name: str, variant: Variant | None = None) -> Handle:
        """Component `name`, with the weights of `variant` if one is given; its graph is not opened yet.

        Raises:
            BundleError: the bundle has no such component.
        """
        component = self.bundle.manifest.components.get(name)
        if component is None:
            has = ", ".join(self.bundle.manifest.components)
            raise BundleError(f"{self.bundle.folder}: no component {name!r}, which this needs: it has {has}; export the model again")
        return Handle(name, component, self, variant)

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name` once, with the weights of `variant` if one is given; `Handle.run`."""
        with self._turn:
            started = time.perf_counter()
            outputs = self._session(name, feeds, variant).run(feeds)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return outputs

    def _session(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None) -> Session:
        component = self.bundle.manifest.components[name]
        dimensions = _dimensions(component, feeds) if self.provider.fixed_shapes else {}
        key = (name, variant.key if variant else (), tuple(sorted(dimensions.items())))
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if self.plan != "resident":
            self._close()
        for other in [one for one in self._open if one[0] == name and one[1] != key[1]]:  # its weights twice would be too much
            self._open.pop(other).close()
        while sum(other == name for other, *_ in self._open) >= SHAPES:
            oldest = next(one for one in self._open if one[0] == name)
            self._open.pop(oldest).close()
        options = replace(self._options, dimensions=dimensions, weights=variant.weights() if variant else {})
        session = open_session(self.bundle.path(component.graph), self.provider, options)
        if session.note:
            self._notes[session.note] = None
        self._open[key] = session
        return session

    def notes(self) -> tuple[str, ...]:
        """What the sessions had to say: a cache that cannot be written."""
        return tuple(self._notes)

    def cancel(self) -> None:
        """Stop what runs now, from any thread: that call raises `Cancelled`."""
        for session in list(self._open.values()):
            session.cancel()

    def close(self) -> None:
        """Give the memory back; sessions open again when they are needed."""
        with self._turn:
            self._close()

    def _close(self) -> None:
        for session in self._open.values():
            session.close()
        self._open.clear()


@dataclass(frozen=True)
class Handle:
    """A component as the rest of the runtime sees it: a session that is opened when it is first run."""

    name: str
    component: Component
    components: Components
    variant: Variant | None = None

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return self.component.inputs

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self.component.outputs

    @property
    def provider(self) -> str:
        return self.components.provider.name

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by its name; see `session.Session.run`."""
        return self.components.run(self.name, feeds, self.variant)


def _dimensions(component: Component, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The free dimensions of the graph's inputs, with their values in `feeds`."""
    return {
        dimension: size
        for name, tensor in component.inputs.items()
        if name in feeds
        for dimension, size in zip(tensor.shape, feeds[name].shape, strict=False)
        if isinstance(dimension, str)
    }


def choose_plan(name: str, bundle: Bundle) -> tuple[Plan, str]:
    """The plan of that name, or for `auto` the one that fits, and a note where that is not the fastest.

    Raises:
        RequestError: an unknown name.
    """
    for plan in PLANS:
        if name == plan:
            return plan, ""
    if name != "auto":
        raise RequestError(f"memory plan {name!r} is unknown: expected auto, {', '.join(PLANS)}")
    free = machine.memory()
    if free is None:
        return "resident", ""
    sizes = [_bytes_of(bundle, component) for component in bundle.manifest.components]
    if ACTIVATIONS * sum(sizes) < free[0]:
        return "resident", ""
    plan: Plan = "sequential" if ACTIVATIONS * max(sizes) < free[0] else "streamed"
    return plan, f"memory: {free[0] / 2**30:.1f} GiB are free, so the plan is {plan}"


def _bytes_of(bundle: Bundle, component: str) -> int:
    """Bytes of the files of a component."""
    folder = bundle.path(bundle.manifest.components[component].graph).parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
