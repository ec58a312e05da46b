"""What both halves of `make interop` know: the cases, and where files lie in the folder they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """A model and an image of it."""

    family: str
    prompt: str
    size: int
    channels: int
    downscale: int
    steps: int
    guidance: float
    seed: int = 7

    def latents(self) -> np.ndarray[Any, Any]:
        """The noise that `rng="numpy"` gives."""
        side = self.size // self.downscale
        return np.random.Generator(np.random.PCG64(self.seed)).standard_normal((1, self.channels, side, side), dtype=np.float32)


CASES = {
    "demo": Case("sd1", "red apple, flat style, blue background", 128, 8, 8, 10, 2.5),
    "sd1": Case("sd1", "a green cat left of a yellow dog", 32, 4, 2, 5, 5.0),
    "sdxl": Case("sdxl", "photo of a house by the sea", 32, 4, 2, 5, 5.0),
}
"""The demo model, and tiny random ones that the other half makes, so that its versions of the libraries name their weights."""


def source(work: Path, name: str) -> Path:
    """The diffusers folder of a case."""
    return Path(__file__).parents[2] / "models/demo/source" if name == "demo" else work / name / "source"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), "utf-8")
