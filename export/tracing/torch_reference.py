"""Run torch modules: the reference for exported graphs."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .traceable import Component

Feeds = dict[str, NDArray[Any]]
SMALL = 100_000_000
"""Bytes of weights up to which all are loaded together."""


@contextmanager
def loaded(component: Component) -> Generator[None]:
    """Load the weights in float32 for the length of the block; the weights of large modules are loaded `by_layer`."""
    if component.bytes >= SMALL:
        with by_layer(component):
            yield
        return
    load(component)
    yield


@contextmanager
def by_layer(component: Component) -> Generator[None]:
    """Within the block, read each layer's weights when the layer is called, and drop them after the call."""
    named: Iterable[tuple[str, Any]] = cast("Any", component.module).named_modules()
    handles = [handle for name, layer in named for handle in _streamed(component, name, layer)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns about GPUs
            with cast("Any", torch).backends.mkldnn.flags(enabled=False):  # it would copy each weight into its own layout
                yield
    finally:
        for handle in handles:
            handle.remove()


def _streamed(component: Component, name: str, layer: Any) -> list[Any]:
    names = [key for key, _ in layer.named_parameters(recurse=False)]
    if not names:
        return []
    placeholders = {key: getattr(layer, key) for key in names}

    def read(*_: Any) -> None:
        for key in names:
            full = f"{name}.{key}".removeprefix(component.prefix)
            setattr(layer, key, nn.Parameter(tensors([component.weights.read(full)])[0], requires_grad=False))

    def drop(*_: Any) -> None:
        for key in names:
            setattr(layer, key, placeholders[key])

    if next(layer.children(), None) is not None:  # parameters beside child layers are used without a call, such as CLIP's class embedding
        read()
        return []
    return [layer.register_forward_pre_hook(read), layer.register_forward_hook(drop)]


def load(component: Component) -> None:
    """Load all weights into the module."""
    state = {component.prefix + key: tensors([component.weights.read(key)])[0] for key in component.weights.shapes}
    component.module.load_state_dict(state, assign=True)
    component.module.requires_grad_(requires_grad=False)


def run(component: Component, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return torch's outputs for `feeds` by name. Call it inside `loaded`, or after `load`."""
    with torch.inference_mode():
        values: Any = component.module(*tensors(feeds[port.name] for port in component.inputs))
    every = cast("tuple[Any, ...]", values if isinstance(values, tuple) else (values,))
    return {port.name: value.numpy() for port, value in zip(component.outputs, every, strict=True)}


def tensors(arrays: Iterable[NDArray[Any]]) -> tuple[Tensor, ...]:
    """`arrays` as torch tensors that share their memory."""
    return tuple(cast("Any", torch).from_numpy(array) for array in arrays)


def examples(component: Component, size: tuple[int, int], batch: int, tokens: int, timestep: float, seed: int) -> Feeds:
    """Random inputs of `component`: `size` is (height, width) of its image or latent; noise has a standard deviation of 1."""
    rng = np.random.default_rng(seed)
    free = {"batch_size": batch, "height": size[0], "width": size[1], "sequence_length": tokens}
    feeds: Feeds = {}
    for port in component.inputs:
        shape = tuple(free[dim] if isinstance(dim, str) else dim for dim in port.shape)
        if port.dtype == "int64":
            feeds[port.name] = rng.integers(0, component.vocabulary, shape)
        elif port.name == "timestep":
            feeds[port.name] = np.full(shape, timestep, np.float32)
        elif port.name == "time_ids":
            feeds[port.name] = rng.choice(np.array([0, 512, 768, 1024], np.float32), shape)
        elif component.name == "vae_encoder":
            feeds[port.name] = rng.uniform(-1, 1, shape).astype(np.float32)
        else:
            feeds[port.name] = rng.standard_normal(shape, np.float32)
    return feeds


def cases(component: Component) -> list[Feeds]:
    """Inputs of several sizes, batches and, for the U-Net, timesteps."""
    tokens = int(component.config.get("max_position_embeddings", 16))
    if component.name.startswith("text_encoder"):
        return [examples(component, (0, 0), batch, tokens, 0.0, seed=batch) for batch in (1, 2)]
    if component.name == "vae_encoder":
        return [examples(component, size, 1, 0, 0.0, seed=1) for size in ((64, 64), (64, 96))]
    if component.name in {"vae_decoder", "tiny_decoder"}:
        return [examples(component, size, 1, 0, 0.0, seed=1) for size in ((8, 8), (12, 17))]
    if component.name == "safety_checker":
        return [examples(component, (0, 0), batch, 0, 0.0, seed=batch) for batch in (1, 2)]
    settings = (((19, 13), (999.0,)), ((12, 24), (1.0, 250.0, 500.0, 750.0)))
    feeds = [examples(component, size, len(steps), 16, 0.0, seed=int(steps[0])) for size, steps in settings]
    return [feed | {"timestep": np.array(steps, np.float32)} for feed, (_, steps) in zip(feeds, settings, strict=True)]


def references(component: Component, feeds: Iterable[Feeds]) -> list[dict[str, NDArray[np.float32]]]:
    """Return torch's outputs for each of `feeds`. Call it inside `loaded`."""
    return [run(component, feed) for feed in feeds]
