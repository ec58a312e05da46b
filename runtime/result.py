"""What generating yields: steps, notes and images as they come, and a result that holds all images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .metadata.record import Record
from .types import Array


@dataclass(frozen=True)
class Step:
    """One denoising step of one image is done.

    Attributes:
        picture: index of the image, from 0.
        number: steps of this image done so far, from 1.
        total: steps of this image, over all its passes.
        latents: (1, channels, height, width), float32, with the noise that is left.
        denoised: the model's current estimate of the finished latents, same shape; `Pipeline.preview` turns it into an image.
        done: share of the request's steps that are done, 0 to 1.
    """

    picture: int
    number: int
    total: int
    latents: Array
    denoised: Array
    done: float


@dataclass(frozen=True)
class Note:
    """Something that the user should know, such as a prompt that was cut.

    Attributes:
        text: one sentence.
    """

    text: str


@dataclass(frozen=True)
class Picture:
    """One image is done.

    Attributes:
        image: RGB, the requested size.
        seed: the seed of this image.
        record: everything that reproduces the image; goes into the file's metadata.
        flagged: the safety checker found the image unsafe, so `image` is black, or blurred beyond recognition.
    """

    image: Image.Image
    seed: int
    record: Record
    flagged: bool = False


@dataclass(frozen=True)
class Result:
    """All images of a request.

    Attributes:
        pictures: the images, each with its seed and record, in the order of their seeds.
        provider: the execution provider that ran, such as "cpu".
        plan: the memory plan in use at the end: resident, sequential or streamed.
        notes: what the user should know: a prompt that was cut, a provider that `auto` skipped.
        timings: seconds by component, and "total".
        safety: the bundle's safety checker saw the images ("on"), was turned off ("off"), or does not exist ("none").
    """

    pictures: tuple[Picture, ...]
    provider: str
    plan: str
    notes: tuple[str, ...]
    timings: dict[str, float]
    safety: Literal["on", "off", "none"] = "none"

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The images alone."""
        return tuple(picture.image for picture in self.pictures)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(picture.seed for picture in self.pictures)

    @property
    def metadata(self) -> tuple[Record, ...]:
        """The record of each image."""
        return tuple(picture.record for picture in self.pictures)
