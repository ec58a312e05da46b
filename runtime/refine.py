"""Handing a picture over to a refiner, a model that was trained on the last, least noisy steps alone (Podell et al. 2023,
arXiv:2307.01952, section 2.5; eDiff-I's ensemble of expert denoisers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..models.errors import BundleError
from ..models.families import FAMILIES
from ..models.manifest import Manifest, Noise
from .components import Components
from .denoise import Denoise
from .drawing import Drawing, Run
from .noise_levels import Levels, timestep_of


def check(base: Manifest, refiner: Manifest) -> None:
    """Finds that `refiner` can go on with what `base` began.

    Raises:
        BundleError: their latents are not the same, or the refiner works on pictures of its own.
    """
    if FAMILIES[refiner.family].task not in {"refine", "text"}:
        raise BundleError(
            f"{refiner.source.name}: {refiner.family} cannot refine: expected an SDXL refiner, or a model that draws from words"
        )
    if base.latent != refiner.latent:
        raise BundleError(
            f"{refiner.source.name} cannot refine what {base.source.name} draws: "
            f"its latents are {refiner.latent}, but expected {base.latent}; take a refiner of the same family"
        )


def handover(sigmas: Levels, noise: Noise, start: float) -> int:
    """The index in `sigmas` at which the refiner takes over: of the first step that lies beyond the share `start` of the timesteps.

    Timesteps are counted, not steps, since they are what the refiner was trained on; diffusers' `denoising_end` and
    `denoising_start` do the same.
    """
    timestep, last = timestep_of(noise), len(sigmas) - 1
    cutoff = round(noise.train_timesteps * (1.0 - start))
    return next((index for index, sigma in enumerate(sigmas[:last].tolist()) if timestep(sigma) < cutoff - 1e-6), last)


def split(run: Run, place: int, owner: Components, model: Callable[[Drawing], Denoise], notes: list[str]) -> list[Run]:
    """`run` up to the index `place` of its sigmas, and the rest with `model`, which belongs to `owner`."""
    if place == run.steps:
        notes.append("the refiner had nothing to do: its share of the timesteps holds no step; lower refiner_start, or take more steps")
        return [run]
    if place == 0:
        return [replace(run, owner=owner, model=model)]

    def go_on(group: Sequence[Drawing]) -> None:
        """Latents stay as they are: at the level at which the first part ended."""

    return [replace(run, sigmas=run.sigmas[: place + 1]), Run(owner, run.sigmas[place:], go_on, model)]
