"""Prompt fidelity: does an image show what the prompt says? A separately trained judge rates images of the demo model.

The judge recognizes subject, style and background, and never saw a generated image. The prompts, their seeds and the
judge are fixed, so the same bundle with the same settings scores the same on the CPU; `labels.json` beside the judge has its
accuracy on real drawings. For other models there is no such judge here: their prompts mean things that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models.bundle import DEMO
from ...models.errors import RequestError
from ...runtime import pipeline
from ...runtime.engine.providers import resolve
from ...runtime.engine.session import open_session
from ...runtime.request import Request

JUDGE = DEMO.parent / "judge"
"""Folder of the judge: model.onnx and labels.json."""
SIDE = 64
"""Pixels; what the judge sees of an image."""
PROMPTS = 200
MODEL = "diffusette-demo"
"""Whose images the judge knows."""


class Prompt(msgspec.Struct, frozen=True):
    """What a prompt requests. Plain names leave style and background to the model."""

    prompt: str
    subject: str
    style: str | None
    background: str | None
    held_out: bool
    """This combination was kept from the model's training."""


class Labels(msgspec.Struct, frozen=True):
    """The labels of the judge."""

    accuracy: dict[str, dict[str, float]]
    """Distortion of real drawings → share whose subject, style and background it recognizes."""
    subject: tuple[str, ...]
    style: tuple[str, ...]
    background: tuple[str, ...]
    prompts: tuple[Prompt, ...]


class PromptFidelity(msgspec.Struct, frozen=True):
    """Shares of the images that show what the prompt says, 0 to 1; None if no prompt says it."""

    pictures: int
    subject: float
    style: float | None
    background: float | None
    everything: float | None
    """Share with all three right, of the prompts with subject, style and background."""
    held_out: float | None
    """The subject, in combinations that the model's training had not."""
    seconds: float
    """Mean time of an image, the first one left out."""
    seen: tuple[tuple[str, str, str], ...]
    """Subject, style and background that the judge saw, image by image."""


def labels() -> Labels:
    """Labels, prompts and accuracy of the judge."""
    return msgspec.json.decode((JUDGE / "labels.json").read_bytes(), type=Labels)


def chosen(count: int) -> tuple[tuple[int, Prompt], ...]:
    """`count` of the fixed prompts with their seeds, evenly spread over plain names and full prompts.

    Raises:
        RequestError: less than 1 or more than there are.
    """
    if not 1 <= count <= PROMPTS:
        raise RequestError(f"judge: {count} images, expected 1 to {PROMPTS}: there are so many prompts")
    everything = labels().prompts
    return tuple((seed, everything[seed]) for seed in (number * PROMPTS // count for number in range(count)))


def look(pictures: Sequence[NDArray[np.uint8]]) -> tuple[tuple[str, str, str], ...]:
    """Subject, style and background that the judge sees in each RGB image, (height, width, 3), sides multiples of 64."""
    known = labels()
    session = open_session(JUDGE / "model.onnx", resolve("cpu"))
    names = {"subject": known.subject, "style": known.style, "background": known.background}
    seen: list[tuple[str, str, str]] = []
    for picture in pictures:
        outputs = session.run({"picture": _shrunk(picture)})
        subject, style, background = (words[int(outputs[name].argmax())] for name, words in names.items())
        seen.append((subject, style, background))
    session.close()
    return tuple(seen)


def score(
    drawer: pipeline.Pipeline, settings: Request | None = None, count: int = PROMPTS, tick: Callable[[], None] = lambda: None
) -> PromptFidelity:
    """Draw `count` of the judge's prompts with `drawer` under `settings` (its prompt and seed do not matter) and let the judge look.

    `tick` is called after each image.

    Raises:
        RequestError: not the demo model, or `count` is out of range.
        DiffusetteError: any error of generating.
    """
    name = drawer.manifest.source.name
    if name != MODEL:
        raise RequestError(f"judge: the model is {name or 'unnamed'}, but the judge knows the images of {MODEL} only: omit --judge")
    settings = settings or Request("")
    wanted = chosen(count)
    pictures: list[NDArray[np.uint8]] = []
    times: list[float] = []
    for seed, prompt in wanted:
        result = drawer.generate(replace(settings, prompt=prompt.prompt, seed=seed, count=1))
        pictures.append(np.asarray(result.images[0]))
        times.append(result.timings["total"])
        tick()
    return judged([prompt for _, prompt in wanted], look(pictures), float(np.mean(times[1:] or times)))


def judged(wanted: Sequence[Prompt], seen: Sequence[tuple[str, str, str]], seconds: float = 0.0) -> PromptFidelity:
    """Score what was `seen` against what was `wanted`."""
    pairs = list(zip(wanted, seen, strict=True))
    full = [(prompt, sight) for prompt, sight in pairs if prompt.style is not None]
    return PromptFidelity(
        pictures=len(pairs),
        subject=_share([prompt.subject == subject for prompt, (subject, _, _) in pairs]) or 0.0,
        style=_share([prompt.style == style for prompt, (_, style, _) in full]),
        background=_share([prompt.background == background for prompt, (_, _, background) in full]),
        everything=_share([(prompt.subject, prompt.style, prompt.background) == sight for prompt, sight in full]),
        held_out=_share([prompt.subject == subject for prompt, (subject, _, _) in full if prompt.held_out]),
        seconds=seconds,
        seen=tuple(seen),
    )


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _shrunk(picture: NDArray[Any]) -> NDArray[np.float32]:
    """Means of squares of pixels, (1, 3, 64, 64) in [-1, 1], as the judge was trained on."""
    height, width, channels = picture.shape
    blocks = picture.astype(np.float32).reshape(SIDE, height // SIDE, SIDE, width // SIDE, channels)
    return (blocks.mean(axis=(1, 3)) / np.float32(127.5) - np.float32(1.0)).transpose(2, 0, 1)[None]
