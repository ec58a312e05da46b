"""The open sessions of a bundle, under a memory plan.

Autoencoders that were cut for it (`bands.py`) work on bands of rows under every plan; others in tiles under `streamed`, or where
memory runs out. Where a plan does not fit after all, `auto` goes on with the next one (`plans.py`).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from ..models import onnx_file, single
from ..models.bundle import Bundle
from ..models.errors import BundleError, ResourceError
from ..models.manifest import Component, Graph, Tensor
from . import bands, graph_cache
from .failures import Cancelled, scarce
from .plans import PLANS, Plan
from .providers import Provider
from .session import Session, SessionOptions, give_memory_back, open_session

SHAPES = 2
"""Sessions of one component that are kept where a provider wants one for each picture size."""
BAND = 16 << 20
"""Bytes of what goes into a piece of an autoencoder and comes out of it, for one band of rows. Neighbouring rows, which are computed
twice, are then a sixteenth of the work; larger bands were hardly faster, and take 0.15 GB more."""
LEAN_BAND = 8 << 20
"""Likewise under leaner plans: a tenth of the work, and less memory."""
TILE = 40
"""Side of a tile that pictures are decoded and encoded in where memory is scarce, at most, in latent pixels, by graphs that are not
cut for bands. Each tile is normalized by its own statistics, so that tones differ a little from those of a picture decoded whole."""
TILED = frozenset({"vae_decoder", "vae_encoder", "tiny_decoder"})
"""Components that work in tiles as well."""


class Variant(NamedTuple):
    """A component with other weights than its file has."""

    key: tuple[str, ...]
    """What tells it from every other; never empty."""
    weights: Callable[[Container[str]], Mapping[str, NDArray[Any]]]
    """Names of the initializers that a graph has → those to use instead of the file's; made each time a session is opened."""


_Key = tuple[str, tuple[str, ...], tuple[tuple[str, int], ...]]
"""Name, key of the variant, free dimensions."""


class Components:
    """The sessions of `bundle`, opened when they are first run. Threads may share it: one call runs at a time."""

    def __init__(self, bundle: Bundle, provider: Provider, plan: Plan, options: SessionOptions, *, adaptive: bool = False) -> None:
        self.bundle = bundle
        self.provider = provider
        self.plan: Plan = plan
        self.adaptive = adaptive
        """Whether the next leaner plan may be taken when memory runs out."""
        self.seconds: dict[str, float] = {}
        """Time spent inside each component so far, opening included."""
        self._options = options
        self._open: OrderedDict[_Key, Session] = OrderedDict()
        self._turn = threading.Lock()
        self._notes: dict[str, None] = {}
        self._cancelled = False
        self._wide: set[str] = set()
        self._last = ""  # the component that ran last

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
        """Run component `name`, or a further graph of one (`unet/full`), with the weights of `variant` if one is given; `Handle.run`."""
        with self._turn:
            self._cancelled = False
            started = time.perf_counter()
            component = name.partition("/")[0]
            self._follow(component)
            try:
                return self._run(name, feeds, variant)
            finally:
                self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - started

    def _follow(self, component: str) -> None:
        """Gives back what another component computed in before this one, where that was much."""
        last, self._last = self._last, component
        if last not in {"", component} and graph_cache.pays(self.bundle.path(self._described(last).graph)):
            give_memory_back()

    def _run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None) -> dict[str, NDArray[Any]]:
        """One run, under leaner and leaner plans if need be and allowed."""
        while True:
            try:
                outputs = self._call(name, feeds, variant)
                if _finite(outputs) or not self._widen(name, feeds):
                    return outputs
                continue
            except ResourceError as error:
                _forget(error)
                self._close()  # what failed keeps what it had taken until then
                if not self.adaptive or self.plan == "streamed" or self._can_be_cut(name, feeds):
                    raise
            before, self.plan = self.plan, PLANS[PLANS.index(self.plan) + 1]
            self._notes[f"memory did not suffice for the plan {before}: it went on with {self.plan}"] = None

    def _widen(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether numbers that became NaN or Inf for `feeds` may not do so in float32: then the component computes in it from now on."""
        component = name.partition("/")[0]
        graph = self.bundle.path(self._described(name).graph)
        if component in self._wide or not _finite(feeds) or not single.has_halves(onnx_file.read(graph)):
            return False
        self._wide.add(component)
        for key in [key for key in self._open if key[0].partition("/")[0] == component]:
            self._open.pop(key).close()
        self._notes[f"{component}: NaN or Inf came out in half precision: from there on it computes in float32"] = None
        return True

    def _call(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None) -> dict[str, NDArray[Any]]:
        """One run, in bands where the component can work so."""
        if not self.in_bands(name):
            return self._session(name, feeds, variant).run(feeds)

        def piece(part: str, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if self._cancelled:
                raise Cancelled("the run was cancelled")
            return self._session(f"{name}/{part}", given, variant).run(given)

        size = BAND if self.plan == "resident" else LEAN_BAND
        with scarce(f"{name} in bands"):  # memory may run out between two pieces as well
            return bands.run(self.bundle.manifest.components[name].pieces, piece, feeds, size)

    def in_bands(self, name: str) -> bool:
        """Whether component `name` works on bands of rows, one piece of its graph after the other. On the CPU these take as long as the
        whole in float, and a third longer in 8 bit, for a third of the memory; on a GPU the way to its memory and back would cost more.
        """
        component = self.bundle.manifest.components.get(name)
        return component is not None and bool(component.pieces) and self.provider.name == "cpu"

    def _can_be_cut(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the same can be done in tiles, which costs less than a leaner plan."""
        if name not in TILED or self.in_bands(name):
            return False
        side = TILE if name != "vae_encoder" else TILE * self.bundle.manifest.latent.downscale
        return any(max(value.shape[2:], default=0) > side for value in feeds.values())

    def _session(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None) -> Session:
        described = self._described(name)
        dimensions = _dimensions(described, feeds) if self.provider.fixed_shapes else {}
        key = (name, variant.key if variant else (), tuple(sorted(dimensions.items())))
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        for other in [one for one in self._open if not self._fits_beside(one, key)]:
            self._open.pop(other).close()
        while sum(other == name for other, *_ in self._open) >= SHAPES:
            oldest = next(one for one in self._open if one[0] == name)
            self._open.pop(oldest).close()
        graph = self.bundle.path(described.graph)
        weights: Mapping[str, NDArray[Any]] = variant.weights(onnx_file.read(graph).initializers) if variant else {}
        options = replace(self._options, dimensions=dimensions, weights=weights, wide=name.partition("/")[0] in self._wide)
        if isinstance(described, Graph) and described.bands is not UNSET:
            options = replace(options, cache=None)  # one piece's weights are small beside its tensors
        elif self.plan == "streamed" or (self.plan == "sequential" and name in TILED) or self._is_brief(name):
            # Convolutions gain little from more. Other providers copy weights anyway, and need what folding gives.
            options = replace(options, prepack=False, fold=self.provider.name != "cpu", cache=None)
        elif options.cache is not None and not graph_cache.pays(graph):
            options = replace(options, cache=None)
        session = open_session(graph, self.provider, options)
        if session.note:
            self._notes[session.note] = None
        self._open[key] = session
        return session

    def _described(self, name: str) -> Component | Graph:
        component, _, part = name.partition("/")
        found = self.bundle.manifest.components[component]
        return found.graphs[part] if part else found

    def _fits_beside(self, other: _Key, new: _Key) -> bool:
        """Whether the session `other` may stay open beside a `new` one. Two of a component's graphs, cut to work together, may;
        its weights twice would be too much. All pieces of an autoencoder have its weights once, and what one computed in, the next takes.
        """
        (theirs, _, other_part), (ours, _, part) = other[0].partition("/"), new[0].partition("/")
        if theirs != ours:
            return self.plan == "resident" and not self._is_brief(theirs)
        if self.in_bands(ours):
            return self.plan == "resident" and other[1] == new[1]
        return other[1] == new[1] and bool(other_part) == bool(part) and (self.plan == "resident" or other_part != part)

    def _is_brief(self, name: str) -> bool:
        """Whether component `name` runs once a prompt and has weights that are opened as they are: it is open again in a fifth of a
        second, and takes a quarter of the memory that it would if they were unpacked.
        """
        large = name.startswith("text_encoder") and graph_cache.pays(self.bundle.path(self._described(name).graph))
        return large and self.provider.name == "cpu"

    def tile(self, name: str) -> int:
        """The side of the tiles in which component `name` decodes or encodes pictures, in latent pixels; 0 takes them as they are."""
        return TILE if self.plan == "streamed" and not self.in_bands(name) else 0

    def notes(self) -> tuple[str, ...]:
        """What the sessions had to say: a cache that cannot be written, a plan that memory did not suffice for."""
        return tuple(self._notes)

    def cancel(self) -> None:
        """Stop what runs now, from any thread: that call raises `Cancelled`."""
        self._cancelled = True  # for a run between two bands
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
    component: Component | Graph
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

    @property
    def parts(self) -> Mapping[str, Handle]:
        """The component's further graphs, by name, with the same changes to their weights."""
        graphs = self.component.graphs if isinstance(self.component, Component) else {}
        return {name: Handle(f"{self.name}/{name}", graph, self.components, self.variant) for name, graph in graphs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by its name; see `session.Session.run`."""
        return self.components.run(self.name, feeds, self.variant)


def _finite(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether there is neither NaN nor Inf: such would be left in the sum, for which nothing large has to be kept."""
    return all(bool(np.isfinite(array.sum(dtype=np.float64))) for array in arrays.values() if array.dtype.kind == "f")


def _dimensions(component: Component | Graph, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The free dimensions of the graph's inputs, with their values in `feeds`."""
    return {
        dimension: size
        for name, tensor in component.inputs.items()
        if name in feeds
        for dimension, size in zip(tensor.shape, feeds[name].shape, strict=False)
        if isinstance(dimension, str)
    }


def _forget(error: BaseException | None) -> None:
    """Drop the local variables that the tracebacks of `error` and its causes hold: sessions and arrays."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__
