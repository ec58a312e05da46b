"""A picture between its first noise and its last step, and the ways through noise levels that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..models.errors import NumericalError
from . import randomness
from .components import Components
from .denoise import Array, Denoise
from .noise_levels import Levels
from .randomness import Rng
from .request import Request
from .samplers import Sampler


def _nothing() -> Array:
    return np.empty(0, np.float32)


@dataclass
class Drawing:
    """A picture while it is drawn. Arrays are (1, channels, height, width), empty before the first noise is drawn."""

    request: Request
    index: int
    """Among the pictures of the request, from 0."""
    seed: int
    variation_seed: int
    latents: Array = field(default_factory=_nothing)
    """At the noise level that was reached."""
    denoised: Array = field(default_factory=_nothing)
    """What the model took for the finished latents when it was last asked."""
    noise: Array = field(default_factory=_nothing)
    """The first noise of the pass, of unit variance."""
    steps: int = 0
    """Steps done."""

    def __post_init__(self) -> None:
        self.rng: Rng = randomness.rng(self.request.rng, self.seed)

    def draw_noise(self, shape: Sequence[int]) -> Array:
        """The first noise of a pass for latents of that shape: from the seeds alone, whatever was drawn before."""
        self.rng = randomness.rng(self.request.rng, self.seed)
        other = randomness.rng(self.request.rng, self.variation_seed)
        self.noise = randomness.variation(self.rng, other, shape, self.request.variation)
        return self.noise


@dataclass(frozen=True)
class Run:
    """One model on one way through noise levels."""

    owner: Components
    """Whose model it is."""
    sigmas: Levels
    begin: Callable[[Sequence[Drawing]], None]
    """Brings the latents of drawings to the first of `sigmas`."""
    model: Callable[[Drawing], Denoise]
    """The denoiser of one drawing."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def draw(self, drawing: Drawing, sampler: Sampler, options: Mapping[str, object]) -> Iterator[Array]:
        """Moves `drawing` on, and gives its latents after each step.

        Raises:
            NumericalError: NaN or Inf in the latents.
        """
        model = self.model(drawing)

        def watched(x: Array, sigma: float) -> Array:
            drawing.denoised = model(x, sigma)
            return drawing.denoised

        for latents in sampler.function(watched, drawing.latents, self.sigmas, drawing.rng, **options):
            drawing.steps += 1
            if not np.isfinite(latents).all():
                raise NumericalError(
                    f"step {drawing.steps}: NaN or Inf in the latents, in float32 too: expected finite numbers; use less guidance or "
                    f"another sampler, `diffusette verify` the bundle, or export with --precision unet=fp32"
                )
            drawing.latents = latents
            yield latents
