"""The state of one image during denoising, and the stages that it passes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..models.errors import NumericalError
from .engine.components import Runner
from .request import Request
from .sampling import rng
from .sampling.rng import Rng
from .sampling.samplers import Sampler
from .types import Array, Denoise, Levels


def _empty() -> Array:
    return np.empty(0, np.float32)


@dataclass
class Drawing:
    """An image in the making. Arrays are (1, channels, height, width), empty before the first noise."""

    request: Request
    index: int
    """Among the images of the request, from 0."""
    seed: int
    variation_seed: int
    latents: Array = field(default_factory=_empty)
    """At the noise level reached so far."""
    denoised: Array = field(default_factory=_empty)
    """The model's latest estimate of the finished latents."""
    noise: Array = field(default_factory=_empty)
    """The first noise of the pass, of unit variance."""
    steps: int = 0
    """Steps done."""

    def __post_init__(self) -> None:
        self.rng: Rng = rng.rng(self.request.rng, self.seed)

    def draw_noise(self, shape: Sequence[int]) -> Array:
        """The first noise of a pass for latents of that shape; it depends on the seeds alone, not on earlier calls."""
        self.rng = rng.rng(self.request.rng, self.seed)
        other = rng.rng(self.request.rng, self.variation_seed)
        self.noise = rng.variation(self.rng, other, shape, self.request.variation)
        return self.noise


@dataclass(frozen=True)
class Stage:
    """One model on one stretch of a schedule."""

    owner: Runner
    """The components of the model."""
    sigmas: Levels
    begin: Callable[[Drawing], None]
    """Brings the latents of an image to the first of `sigmas`."""
    model: Callable[[Drawing], Denoise]
    """The denoiser for one image."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def denoise(self, drawing: Drawing, solver: Sampler, options: Mapping[str, object]) -> Iterator[Array]:
        """Denoise `drawing` and yield its latents after each step.

        Raises:
            NumericalError: NaN or Inf in the latents.
        """
        model = self.model(drawing)

        def watched(x: Array, sigma: float) -> Array:
            drawing.denoised = model(x, sigma)
            return drawing.denoised

        for latents in solver.function(watched, drawing.latents, self.sigmas, drawing.rng, **options):
            drawing.steps += 1
            if not np.isfinite(latents).all():
                raise NumericalError(
                    f"step {drawing.steps}: NaN or Inf in the latents, in float32 too; use less guidance or another sampler, "
                    f"check the bundle with `diffusette verify`, or export with --precision unet=fp32"
                )
            drawing.latents = latents
            yield latents
