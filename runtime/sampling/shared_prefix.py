"""A U-Net in two graphs: the shared prefix, which does not depend on the prompt, runs once for a prompt and its negative prompt.

`export/subgraphs/shared_prefix.py` splits the graph.

A prompt and its negative prompt run one after the other with the same sample and timestep, so it is enough to keep the last outputs of the
shared prefix.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...models.manifest import Tensor
from ..types import Unet

NAME = "stem"
"""The name of the shared prefix among a U-Net's graphs in the manifest. The rest is `full`."""

_Arrays = Mapping[str, NDArray[np.generic]]


def carried(name: str) -> bool:
    """Whether the graph input `name` is an output of the shared prefix."""
    return name.startswith(f"{NAME}_")


class SharedPrefixUnet:
    """Runs the shared prefix and the rest as one U-Net session. Create one per image, so that the outputs that it keeps are freed."""

    def __init__(self, prefix: Unet, rest: Unet) -> None:
        self._prefix = prefix
        self._rest = rest
        self._last_feeds: _Arrays = {}
        self._last_outputs: _Arrays = {}

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The inputs of both graphs, without those that the shared prefix computes."""
        return {**self._prefix.inputs, **{name: tensor for name, tensor in self._rest.inputs.items() if not carried(name)}}

    def run(self, feeds: _Arrays) -> _Arrays:
        """Return every output of the second graph by name."""
        own = {name: feeds[name] for name in self._prefix.inputs}
        if own.keys() != self._last_feeds.keys() or not all(np.array_equal(array, self._last_feeds[name]) for name, array in own.items()):
            self._last_feeds, self._last_outputs = {}, {}  # frees the old outputs before the new ones are computed
            self._last_outputs = self._prefix.run(own)
            self._last_feeds = {name: array.copy() for name, array in own.items()}  # samplers may overwrite their arrays
        available = {**feeds, **self._last_outputs}
        return self._rest.run({name: available[name] for name in self._rest.inputs})
