"""Prompt fidelity: does a picture show what was asked for? The demo model's pictures, seen by a judge that was trained apart.

The judge tells subject, style and background of a picture, and never saw a generated one. The prompts, their seeds and the
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

from ..models.bundle import DEMO
from ..models.errors import RequestError
from ..runtime import pipeline
from ..runtime.providers import resolve
from ..runtime.request import Request
from ..runtime.session import open_session

JUDGE = DEMO.parent / "judge"
"""Folder of the judge: model.onnx and labels.json."""
SIDE = 64
"""Pixels; what the judge sees of a picture."""
PROMPTS = 200
MODEL = "diffusette-demo"
"""Whose pictures the judge knows."""


class Prompt(msgspec.Struct, frozen=True):
    """What is asked for. Plain names leave style and background to the model."""

    prompt: str
    subject: str
    style: str | None
    background: str | None
    held_out: bool
    """This combination was kept from the model's training."""


class Labels(msgspec.Struct, frozen=True):
    """What the judge knows."""

    accuracy: dict[str, dict[str, float]]
    """How real drawings were spoilt → share of them whose subject, style and background it tells right."""
    subject: tuple[str, ...]
    style: tuple[str, ...]
    background: tuple[str, ...]
    prompts: tuple[Prompt, ...]


class PromptFidelity(msgspec.Struct, frozen=True):
    """Shares of the pictures that show what was asked for, 0 to 1. None where no prompt asked."""

    pictures: int
    subject: float
    style: float | None
    background: float | None
    everything: float | None
    """Of the prompts with subject, style and background: all three are right."""
    held_out: float | None
    """The subject, in combinations that the model's training had not."""
    seconds: float
    """Mean time of a picture, the first one left out."""
    seen: tuple[tuple[str, str, str], ...]
    """Subject, style and background that the judge saw, picture by picture."""


def labels() -> Labels:
    """Labels, prompts and accuracy of the judge."""
    return msgspec.json.decode((JUDGE / "labels.json").read_bytes(), type=Labels)


def chosen(count: int) -> tuple[tuple[int, Prompt], ...]:
    """`count` of the fixed prompts with their seeds, evenly spread over plain names and full prompts.

    Raises:
        RequestError: less than 1 or more than there are.
    """
    if not 1 <= count <= PROMPTS:
        raise RequestError(f"judge: {count} pictures, but expected 1 to {PROMPTS}: there are so many prompts")
    everything = labels().prompts
    return tuple((seed, everything[seed]) for seed in (number * PROMPTS // count for number in range(count)))


def look(pictures: Sequence[NDArray[np.uint8]]) -> tuple[tuple[str, str, str], ...]:
    """Subject, style and background that the judge sees in each RGB picture, (height, width, 3), sides multiples of 64."""
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

    `tick` is called after each picture.

    Raises:
        RequestError: not the demo model, or `count` is out of range.
        DiffusetteError: whatever drawing raises.
    """
    name = drawer.manifest.source.name
    if name != MODEL:
        raise RequestError(f"judge: the model is {name or 'unnamed'}, but the judge knows the pictures of {MODEL} only: leave --judge out")
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
    """What was `seen`, against what was `wanted`."""
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
