"""The components of a bundle under a memory plan: run by name, and open only while they may be.

Autoencoders that were cut for it (`vae_bands.py`) work on bands of rows under every plan; others work in tiles under `streamed`, or
when memory runs out. If a plan does not fit after all, `auto` continues with the next leaner one (`memory_plans.py`).
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...models.bundle import Bundle
from ...models.errors import BundleError, Cancelled, DiffusetteError, ProviderError, ResourceError
from ...models.formats import onnx_reader, widen_to_float32
from ...models.manifest import Component, Graph, Tensor
from . import vae_bands
from .memory_plans import PLANS, Plan
from .ort_errors import scarce
from .providers import Provider
from .session import SessionOptions, give_memory_back
from .session_pool import TILED, SessionPool, Variant, works_in_bands

BAND = 16 << 20
"""Bytes of a piece's inputs and outputs for one band of rows. Neighbouring rows, computed twice, are then a sixteenth of the work;
larger bands were hardly faster and take 0.15 GB more."""
LEAN_BAND = 8 << 20
"""Under leaner plans: a tenth of the work, and less memory."""
TILE = 40
"""Largest side of a tile, in latent pixels, in which graphs that are not cut for bands decode and encode when memory is scarce. Each
tile is normalized by its own statistics, so tones differ a little from those of an image decoded whole."""


class Runner(Protocol):
    """Runs the components of a bundle by name: `Components`, or a wrapper that records what passes through."""

    bundle: Bundle
    provider: Provider
    plan: Plan
    seconds: dict[str, float]
    """Time spent inside each component so far, opening included."""

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name`, or a further graph of one (`unet/full`), with the weights of `variant` if given."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Notes for the user so far."""
        ...

    def cancel(self) -> None:
        """Stop the running call, from any thread; it raises `Cancelled`."""
        ...

    def close(self) -> None:
        """Free the memory; sessions open again when they are needed."""
        ...

    def __contains__(self, name: str) -> bool:
        return name in self.bundle.manifest.components

    def get(self, name: str, variant: Variant | None = None) -> Handle:
        """Component `name`, with the weights of `variant` if given; its graph opens at the first run.

        Raises:
            BundleError: the bundle has no such component.
        """
        component = self.bundle.manifest.components.get(name)
        if component is None:
            known = ", ".join(self.bundle.manifest.components)
            raise BundleError(
                f"{self.bundle.folder}: component {name!r} is missing, and this needs it; it has {known}; export the model again"
            )
        return Handle(name, component, self, variant)

    def in_bands(self, name: str) -> bool:
        """Whether component `name` works on bands of rows; `works_in_bands`."""
        return works_in_bands(self.bundle, self.provider, name)

    def tile(self, name: str) -> int:
        """Side of the tiles in which component `name` decodes or encodes images, in latent pixels; 0: no tiles."""
        return TILE if self.plan == "streamed" and not self.in_bands(name) else 0


class Forwarder(Runner):
    """Passes everything on to `inner`. Derive from it to see the calls."""

    def __init__(self, inner: Runner) -> None:
        self.bundle = inner.bundle
        self.provider = inner.provider
        self.plan: Plan = inner.plan
        self.seconds = inner.seconds
        self.inner = inner

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name` of `inner`."""
        outputs = self.inner.run(name, feeds, variant)
        self.plan = self.inner.plan  # a leaner one, if memory ran out
        return outputs

    def notes(self) -> tuple[str, ...]:
        """Notes of `inner`."""
        return self.inner.notes()

    def cancel(self) -> None:
        """Stop the running call of `inner`."""
        self.inner.cancel()

    def close(self) -> None:
        """Free the memory of `inner`."""
        self.inner.close()


class Watched(Forwarder):
    """Calls `seen` with the name of each component before it runs."""

    def __init__(self, inner: Runner, seen: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._seen = seen

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name` of `inner`."""
        self._seen(name.partition("/")[0])
        return super().run(name, feeds, variant)


class Components(Runner):
    """The components of `bundle` on a provider. Threads may share it: one call runs at a time."""

    def __init__(self, bundle: Bundle, provider: Provider, plan: Plan, options: SessionOptions, *, adaptive: bool = False) -> None:
        self.bundle = bundle
        self.provider = provider
        self.plan: Plan = plan
        self.adaptive = adaptive
        """Whether the next leaner plan may follow when memory runs out."""
        self.seconds: dict[str, float] = {}
        self.pool = SessionPool(bundle, provider, options)
        self._turn = threading.Lock()
        self._process = os.getpid()
        self._cancelled = False
        self._wide: set[str] = set()
        self._last = ""  # the component that ran last

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None = None) -> dict[str, NDArray[Any]]:
        """Run component `name`, or a further graph of one (`unet/full`), with the weights of `variant` if given; see `Session.run`.

        Raises:
            ProviderError: this process was forked from the one that opened the bundle. ONNX Runtime's threads do not survive a fork.
        """
        if os.getpid() != self._process:
            raise ProviderError("the model was opened before this process was forked from another: load it again in this process")
        with self._turn:
            self._cancelled = False
            started = time.perf_counter()
            component = name.partition("/")[0]
            self._follow(component)
            try:
                return self._run(name, feeds, variant)
            finally:
                self.seconds[component] = self.seconds.get(component, 0.0) + time.perf_counter() - started

    def notes(self) -> tuple[str, ...]:
        """Notes for the user so far: a cache that cannot be written, a plan that did not fit."""
        return tuple(self.pool.notes)

    def cancel(self) -> None:
        """Stop the running call, from any thread; it raises `Cancelled`."""
        self._cancelled = True  # for a run between two bands
        self.pool.cancel()

    def close(self) -> None:
        """Free the memory; sessions open again when they are needed."""
        with self._turn:
            self.pool.close()

    def _follow(self, component: str) -> None:
        """Free the working memory of the component that ran before this one, if it was much."""
        last, self._last = self._last, component
        if last not in {"", component} and self.pool.is_large(last):
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
                self.pool.close()  # what failed still holds its memory
                if not self.adaptive or self.plan == "streamed" or self._can_be_tiled(name, feeds):
                    if self.plan == "streamed" and not self._can_be_tiled(name, feeds) and self._fall_back(error):
                        continue
                    raise
            except (ProviderError, BundleError) as error:  # which of the two is up to the provider; a damaged file fails on the CPU too
                _forget(error)
                if not self._fall_back(error):
                    raise
                continue
            before, self.plan = self.plan, PLANS[PLANS.index(self.plan) + 1]
            self._note(f"not enough memory for the plan {before}: continued with {self.plan}")

    def _fall_back(self, error: DiffusetteError) -> bool:
        """Whether another provider continues, since `auto` selected the one that failed; the message of `error` becomes a note."""
        fallback = self.provider.fallback
        if fallback is None:
            return False
        self.pool.close()
        self._note(f"{self.provider.name} failed, so {fallback.name} continued: {error}")
        self.provider = self.pool.provider = fallback
        return True

    def _widen(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether float32 may avoid the NaN or Inf that half precision gave for `feeds`; if so, the component uses it from now on."""
        component = name.partition("/")[0]
        graph = self.bundle.path(self.pool.described(name).graph)
        if component in self._wide or not _finite(feeds) or not widen_to_float32.has_halves(onnx_reader.read(graph)):
            return False
        self._wide.add(component)
        self.pool.close_component(component)
        self._note(f"{component}: NaN or Inf in half precision: it computes in float32 from now on")
        return True

    def _call(self, name: str, feeds: Mapping[str, NDArray[Any]], variant: Variant | None) -> dict[str, NDArray[Any]]:
        """One run, in bands if the component can work in bands."""
        wide = name.partition("/")[0] in self._wide
        if not self.in_bands(name):
            outputs = self.pool.session(name, feeds, variant, self.plan, wide=wide).run(feeds)
            _check_outputs(name, self.pool.described(name).outputs, outputs)
            return outputs

        def piece(part: str, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if self._cancelled:
                raise Cancelled("the run was cancelled")
            return self.pool.session(f"{name}/{part}", given, variant, self.plan, wide=wide).run(given)

        size = BAND if self.plan == "resident" else LEAN_BAND
        with scarce(f"{name} in bands"):  # memory may also run out between two pieces
            return vae_bands.run(self.bundle.manifest.components[name].pieces, piece, feeds, size)

    def _can_be_tiled(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Whether tiles, which cost less than a leaner plan, can do the same."""
        if name not in TILED or self.in_bands(name):
            return False
        side = TILE if name != "vae_encoder" else TILE * self.bundle.manifest.latent.downscale
        return any(max(value.shape[2:], default=0) > side for value in feeds.values())

    def _note(self, text: str) -> None:
        self.pool.notes[text] = None


@dataclass(frozen=True)
class Handle:
    """A component as the rest of the runtime sees it: a session that opens at the first run."""

    name: str
    component: Component | Graph
    components: Runner
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
        """The component's further graphs by name, with the same changes to their weights."""
        graphs = self.component.graphs if isinstance(self.component, Component) else {}
        return {name: Handle(f"{self.name}/{name}", graph, self.components, self.variant) for name, graph in graphs.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by its name; see `session.Session.run`."""
        return self.components.run(self.name, feeds, self.variant)


def _check_outputs(name: str, said: Mapping[str, Tensor], real: Mapping[str, NDArray[Any]]) -> None:
    """Refuse outputs of another name, rank or fixed size than the manifest says: what follows would draw another image."""
    for output, tensor in said.items():
        shape = real[output].shape if output in real else None
        fits = shape is not None and len(shape) == len(tensor.shape) and all(shape)
        if shape is None or not fits or any(isinstance(a, int) and a != b for a, b in zip(tensor.shape, shape, strict=True)):
            raise BundleError(
                f"{name}: the graph returned {output} as {shape and list(shape)}, expected {list(tensor.shape)}; export the model again"
            )


def _finite(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether there is neither NaN nor Inf: either would survive in the sum, which needs no large temporary."""
    return all(bool(np.isfinite(array.sum(dtype=np.float64))) for array in arrays.values() if array.dtype.kind == "f")


def _forget(error: BaseException | None) -> None:
    """Drop the local variables that the tracebacks of `error` and its causes hold: sessions and arrays."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__
