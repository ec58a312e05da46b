"""Handing an image over to a refiner, a model trained on the last, least noisy steps.

Podell et al. 2023 (arXiv:2307.01952, section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..models.errors import BundleError
from ..models.families import FAMILIES
from ..models.manifest import Manifest, Noise
from .denoising import Drawing, Stage
from .engine.components import Runner
from .sampling.noise_levels import timestep_of
from .types import Denoise, Levels

NO_STEPS = "the refiner has no step in its share of the timesteps: lower refiner_start, or use more steps"


def check_refiner(base: Manifest, refiner: Manifest) -> None:
    """Check that `refiner` can continue from the latents of `base`.

    Raises:
        BundleError: their latents differ, or the refiner needs an image of its own.
    """
    if FAMILIES[refiner.family].task not in {"refine", "text"}:
        raise BundleError(f"{refiner.source.name}: {refiner.family} cannot refine; expected an SDXL refiner, or a text-to-image model")
    if base.latent != refiner.latent:
        raise BundleError(
            f"{refiner.source.name} cannot refine images of {base.source.name}: "
            f"its latents are {refiner.latent}, expected {base.latent}; use a refiner of the same family"
        )


def handover(sigmas: Levels, noise: Noise, start: float) -> int:
    """The index in `sigmas` at which the refiner takes over: the first step beyond the share `start` of the timesteps.

    Timesteps count, not steps, because the refiner was trained on timesteps; diffusers' `denoising_end` and `denoising_start` do the
    same.
    """
    timestep, last = timestep_of(noise), len(sigmas) - 1
    cutoff = round(noise.train_timesteps * (1.0 - start))
    return next((index for index, sigma in enumerate(sigmas[:last].tolist()) if timestep(sigma) < cutoff - 1e-6), last)


def split_stage(stage: Stage, place: int, owner: Runner, model: Callable[[Drawing], Denoise]) -> list[Stage]:
    """`stage` up to the index `place` of its sigmas, then the rest with `model`, which belongs to `owner`."""
    if place == stage.steps:
        return [stage]
    if place == 0:
        return [replace(stage, owner=owner, model=model)]

    def keep_latents(drawing: Drawing) -> None:
        """The first part ends at the level at which the second begins."""

    return [replace(stage, sigmas=stage.sigmas[: place + 1]), Stage(owner, stage.sigmas[place:], keep_latents, model)]
