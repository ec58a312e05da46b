"""What drawing gives: each step, each picture, and all of it in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .denoise import Array
from .parameters import Record


@dataclass(frozen=True)
class Step:
    """One step of one picture is done."""

    picture: int
    """Index of the picture, from 0."""
    number: int
    """Steps of it done, from 1."""
    total: int
    """Steps that it takes, over all its passes."""
    latents: Array
    """(1, channels, height, width), float32, with the noise that is left."""
    denoised: Array
    """What the model takes for the finished latents; `Pipeline.preview` makes a picture of it."""
    done: float
    """The share of the steps of all pictures that is done, 0 to 1."""


@dataclass(frozen=True)
class Picture:
    """One picture is done."""

    image: Image.Image
    seed: int
    record: Record
    """What it takes to draw it again; goes into the file's metadata."""
    flagged: bool = False
    """The safety checker found it unsafe: `image` is black."""


@dataclass(frozen=True)
class Result:
    """What `generate` gives."""

    pictures: tuple[Picture, ...]
    provider: str
    """The provider that ran."""
    plan: str
    """The memory plan that was used."""
    notes: tuple[str, ...]
    """What the user should know: what was cut from the prompt, what `auto` passed over."""
    timings: dict[str, float]
    """Seconds by component, and `total`."""
    safety: Literal["on", "off", "none"] = "none"
    """Whether the bundle's safety checker saw the pictures, was switched off, or is not there."""

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(picture.image for picture in self.pictures)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(picture.seed for picture in self.pictures)

    @property
    def metadata(self) -> tuple[Record, ...]:
        return tuple(picture.record for picture in self.pictures)
