"""From a U-Net session to a `Denoise`: prediction types, guidance, and what else wraps the model.

The seam of the runtime: a sampler sees only `Denoise`, a function of the noisy sample and its sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Denoise = Callable[[Array, float], Array]
"""(x, sigma) → the denoised sample. x = x0 + sigma · noise, float32, (1, channels, height, width)."""
Feeds = Mapping[str, NDArray[np.generic]]
"""What a prompt gives to the U-Net: `encoder_hidden_states` (1, tokens, width), for SDXL `text_embeds` and `time_ids`, …"""


class Weighted(NamedTuple):
    """One of the prompts joined by AND."""

    weight: float
    feeds: Feeds


Conditioning = Callable[[float], Sequence[Weighted]]
"""sigma → the prompts that hold at that sigma; a plain prompt gives the same one everywhere."""
