"""Types shared by the whole runtime: arrays, and the functions that connect samplers, guidance and the U-Net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.manifest import Tensor

Array = NDArray[np.float32]


Denoise = Callable[[Array, float], Array]
"""(x, sigma) → the denoised sample. x = x0 + sigma · noise, float32, (1, channels, height, width)."""


Feeds = Mapping[str, NDArray[np.generic]]
"""A prompt's inputs of the U-Net: `encoder_hidden_states` (1, tokens, width), for SDXL also `text_embeds` and `time_ids`, …"""


Predict = Callable[[Array, float, Feeds], Array]
"""(x, sigma, feeds) → the U-Net's prediction (noise, v, …), float32, shaped like x; any batch size."""


EXTRA_CHANNELS = "extra_channels"
"""A feed that is not a graph input: (1, k, height, width), appended to the channels of the scaled sample. Inpainting U-Nets take mask and
masked image (k = 5), InstructPix2Pix the image (k = 4)."""


Call = Callable[[Array, float, Feeds, Feeds], Mapping[str, Array]]
"""(x, sigma, feeds, more) → every output of the graph by name; `more` are inputs that are passed on unchanged."""


Segment = Callable[[float], int]
"""sigma → the number of its segment, a run of consecutive steps; cached values are reused within a segment only."""


class Weighted(NamedTuple):
    """One of the prompts joined by AND."""

    weight: float
    feeds: Feeds


Conditioning = Callable[[float], Sequence[Weighted]]
"""sigma → the prompts to use at that sigma; a plain prompt is the same at every sigma."""


class Unet(Protocol):
    """The parts of a session that samplers need."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...
    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]: ...


Levels = NDArray[np.float64]
"""Noise levels, (n,)."""
