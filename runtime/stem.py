"""A U-Net in two graphs, the first of which does not look at the prompt: run once for a prompt and its negative; cut by export/stem.py.

Both are asked about the same sample at the same time, one after the other, so the last answer of the first graph is all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..models.manifest import Tensor
from .components import Components
from .denoise import Unet

NAME = "stem"
"""Of the graph that comes first; the other is `full`."""

_Arrays = Mapping[str, NDArray[np.generic]]


def carried(name: str) -> bool:
    """Whether the input `name` of a graph is what the stem gives."""
    return name.startswith(f"{NAME}_")


def pays(components: Components) -> bool:
    """Whether nothing but time counts, in the processor's memory: what the stem gave stays there from call to call (21 MB for SD 1.5
    at 512×512), and would have to come and go where memory is a device's.
    """
    return components.plan == "resident" and components.provider.device is None


class Stemmed:
    """Looks like one U-Net session. For the drawing of one picture: what it keeps is freed with it."""

    def __init__(self, stem: Unet, rest: Unet) -> None:
        self._stem = stem
        self._rest = rest
        self._asked: _Arrays = {}
        self._gave: _Arrays = {}

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """What both take from outside."""
        return {**self._stem.inputs, **{name: tensor for name, tensor in self._rest.inputs.items() if not carried(name)}}

    def run(self, feeds: _Arrays) -> _Arrays:
        """Every output of the second graph by its name."""
        asked = {name: feeds[name] for name in self._stem.inputs}
        if asked.keys() != self._asked.keys() or not all(np.array_equal(array, self._asked[name]) for name, array in asked.items()):
            self._asked, self._gave = {}, {}  # first, so that it need not be there twice
            self._gave = self._stem.run(asked)
            self._asked = {name: array.copy() for name, array in asked.items()}  # samplers may write into theirs
        given = {**feeds, **self._gave}
        return self._rest.run({name: given[name] for name in self._rest.inputs})
