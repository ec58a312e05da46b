"""The open sessions of a bundle: which graphs may be open at the same time, and with which options they open.

The pool belongs to one `Components`, which runs one call at a time; it takes no lock of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import UNSET
from numpy.typing import NDArray

from ...models.bundle import Bundle
from ...models.formats import onnx_reader
from ...models.manifest import Component, Graph
from . import graph_cache
from .memory_plans import Plan
from .providers import Provider
from .session import Session, SessionOptions, open_session

SHAPES = 2
"""The most open sessions of one component, if a provider needs one for each image size."""
TILED = frozenset({"vae_decoder", "vae_encoder", "tiny_decoder"})
"""Components that can work in tiles."""


class Variant(NamedTuple):
    """A component with weights that differ from its file."""

    key: tuple[str, ...]
    """Identifies the variant; never empty."""
    weights: Callable[[Container[str]], Mapping[str, NDArray[Any]]]
    """Names of a graph's initializers → the arrays that replace the file's; called each time a session opens."""


_Key = tuple[str, tuple[str, ...], tuple[tuple[str, int], ...]]
"""Name, key of the variant, free dimensions."""


class SessionPool:
    """Opens sessions on demand and closes those that the memory plan does not allow at the same time."""

    def __init__(self, bundle: Bundle, provider: Provider, options: SessionOptions) -> None:
        self.bundle = bundle
        self.provider = provider
        self.notes: dict[str, None] = {}
        """Notes of sessions, such as a cache that cannot be written; an ordered set."""
        self._options = options
        self.open: OrderedDict[_Key, Session] = OrderedDict()
        """The open sessions, the least recently used first."""

    def session(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None, plan: Plan, *, wide: bool) -> Session:
        """Return the session of component or graph `name` for `feeds` under `plan`; `wide` computes half precision in float32."""
        described = self.described(name)
        dimensions = _dimensions(described, feeds) if self.provider.fixed_shapes else {}
        key = (name, variant.key if variant else (), tuple(sorted(dimensions.items())))
        if key in self.open:
            self.open.move_to_end(key)
            return self.open[key]
        self._make_room(key, plan)
        graph = self.bundle.unchanged(described.graph)
        weights: Mapping[str, NDArray[Any]] = variant.weights(onnx_reader.read(graph).initializers) if variant else {}
        options = replace(self._options_for(name, described, plan), dimensions=dimensions, weights=weights, wide=wide)
        session = open_session(graph, self.provider, options)
        if session.note:
            self.notes[session.note] = None
        self.open[key] = session
        return session

    def described(self, name: str) -> Component | Graph:
        """Return the manifest's entry for a component, or for an additional graph of a component (`unet/full`)."""
        component, _, part = name.partition("/")
        found = self.bundle.manifest.components[component]
        return found.graphs[part] if part else found

    def is_large(self, name: str) -> bool:
        """Whether the component's graph is large enough that closing it frees much memory."""
        return graph_cache.pays(self.bundle.path(self.described(name).graph))

    def close_component(self, component: str) -> None:
        """Close every session of `component`."""
        for key in [key for key in self.open if key[0].partition("/")[0] == component]:
            self.open.pop(key).close()

    def cancel(self) -> None:
        """Stop the running call, from any thread."""
        for session in list(self.open.values()):
            session.cancel()

    def close(self) -> None:
        """Close every session."""
        for session in self.open.values():
            session.close()
        self.open.clear()

    def _make_room(self, key: _Key, plan: Plan) -> None:
        """Close the sessions that may not stay open beside that of `key`."""
        for other in [one for one in self.open if not self._fits_beside(one, key, plan)]:
            self.open.pop(other).close()
        while sum(other == key[0] for other, *_ in self.open) >= SHAPES:
            oldest = next(one for one in self.open if one[0] == key[0])
            self.open.pop(oldest).close()

    def _fits_beside(self, other: _Key, new: _Key, plan: Plan) -> bool:
        """Whether the session `other` may stay open beside a `new` one.

        Two graphs of one component that work together may; a component is never open twice, which would double its weights. The pieces of
        an autoencoder contain its weights once in total, and each reuses the memory of the previous one.
        """
        (theirs, _, other_part), (ours, _, part) = other[0].partition("/"), new[0].partition("/")
        if theirs != ours:
            return plan == "resident" and not self._is_brief(theirs)
        if works_in_bands(self.bundle, self.provider, ours):
            return plan == "resident" and other[1] == new[1]
        return other[1] == new[1] and bool(other_part) == bool(part) and (plan == "resident" or other_part != part)

    def _is_brief(self, name: str) -> bool:
        """Whether component `name` runs once per prompt and reopens in a fifth of a second, in a quarter of the memory that prepacked
        weights take: a large text encoder on the CPU.
        """
        return name.startswith("text_encoder") and self.provider.name == "cpu" and self.is_large(name)

    def _options_for(self, name: str, described: Component | Graph, plan: Plan) -> SessionOptions:
        if isinstance(described, Graph) and described.bands is not UNSET:
            return replace(self._options, cache=None)  # the weights of one piece are small beside its tensors
        lean = plan == "streamed" or (plan == "sequential" and name in TILED)
        if (lean and self.is_large(name)) or self._is_brief(name):  # small components cost nothing, and keep the same bits in every plan
            # Convolutions gain little from prepacking. Providers other than the CPU copy weights anyway, and need constant folding.
            return replace(self._options, prepack=False, fold=self.provider.name != "cpu", cache=None)
        if self._options.cache is not None and not self.is_large(name):
            return replace(self._options, cache=None)
        return self._options


def _dimensions(component: Component | Graph, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the free dimensions of the graph's inputs with their values in `feeds`."""
    return {
        dimension: size
        for name, tensor in component.inputs.items()
        if name in feeds
        for dimension, size in zip(tensor.shape, feeds[name].shape, strict=False)
        if isinstance(dimension, str)
    }


def works_in_bands(bundle: Bundle, provider: Provider, name: str) -> bool:
    """Whether component `name` runs on bands of rows, one piece of its graph after the other.

    On the CPU, bands take as long as the whole graph in float32 and a third longer in int8, for a third of the memory; on a GPU, copies
    to and from its memory would cost more than they save.
    """
    component = bundle.manifest.components.get(name)
    return component is not None and bool(component.pieces) and provider.name == "cpu"
