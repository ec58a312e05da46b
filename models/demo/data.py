"""The training images of the demo model: emoji drawings on plain backgrounds, with captions.

Drawings come from two icon sets on the npm registry (Apache-2.0 and MIT, see LICENSES.md). `python models/demo/data.py`
fetches them with npm and renders each subject in each style once; backgrounds are put behind them when they are used.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
WORK = HERE.parents[1] / "build" / "demo-model"

SIZE = 128
"""Width and height of an image in pixels."""
DRAWING = 112
"""Width and height of the drawing, centred in the image."""

STYLES = {"noto": "@iconify-json/noto@1.2.9", "flat": "@iconify-json/fluent-emoji-flat@1.2.6"}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "gray": (150, 152, 158),
    "red": (222, 48, 52),
    "orange": (250, 140, 30),
    "yellow": (252, 218, 60),
    "green": (64, 170, 80),
    "teal": (36, 170, 170),
    "blue": (52, 116, 226),
    "purple": (136, 72, 190),
    "pink": (250, 160, 200),
    "brown": (130, 86, 56),
}


@dataclass(frozen=True)
class Subjects:
    """The subjects that the model knows. `words[i]` are the names people use for subject `i`, the icon sets' own first."""

    icons: list[str]
    words: list[list[str]]


def read_subjects() -> Subjects:
    icons: list[str] = []
    words: list[list[str]] = []
    for line in (HERE / "subjects.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        icon, _, others = line.partition(":")
        icons.append(icon.strip())
        words.append([icon.strip().replace("-", " "), *(word.strip() for word in others.split(",") if word.strip())])
    return Subjects(icons, words)


def held_out(icon: str, style: str, background: str) -> bool:
    """Whether this combination is kept from the U-Net's training (one in ten), to see whether the model combines freely."""
    return hashlib.sha256(f"{icon}/{style}/{background}".encode()).digest()[0] < 26


def caption(words: list[str], style: str | None, background: str | None, rng: np.random.Generator) -> str:
    """A prompt for a drawing, in one of the ways people write it; a part that is None is not mentioned."""
    word = words[int(rng.integers(len(words)))]
    if rng.random() < 0.2:
        word = ("an " if word[0] in "aeiou" else "a ") + word
    parts = [word]
    if style is not None:
        parts.append(f"{style} style")
    if background is not None:
        parts.append(f"{background} background")
    way = rng.random()
    if way < 0.15:
        return " ".join([word] + [f"in {part}" if part.endswith("style") else f"on a {part}" for part in parts[1:]])
    if way < 0.4:
        rng.shuffle(parts)
    return ", ".join(parts)


def render(svg: str, size: int) -> np.ndarray:
    """RGBA, uint8, (size, size, 4)."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def fetch_drawings() -> np.ndarray:
    """Every subject in every style: premultiplied RGBA, uint8, (subjects, styles, SIZE, SIZE, 4); cached on disk."""
    cache = WORK / "drawings.npy"
    if cache.exists():
        return np.load(cache)
    icons_folder = WORK / "icons"
    icons_folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--prefix", str(icons_folder), *STYLES.values()], check=True, stdout=subprocess.DEVNULL)
    subjects = read_subjects()
    margin = (SIZE - DRAWING) // 2
    drawings = np.zeros((len(subjects.icons), len(STYLES), SIZE, SIZE, 4), np.uint8)
    for column, package in enumerate(STYLES.values()):
        name = package.rpartition("@")[0]
        icon_set = json.loads((icons_folder / "node_modules" / name / "icons.json").read_text())
        for row, icon in enumerate(subjects.icons):
            entry = icon_set["icons"][icon]
            width, height = entry.get("width", icon_set["width"]), entry.get("height", icon_set["height"])
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
            picture = render(svg, DRAWING).astype(np.float32)
            picture[..., :3] *= picture[..., 3:] / 255
            drawings[row, column, margin:-margin, margin:-margin] = np.rint(picture)
    temporary = cache.with_suffix(".tmp.npy")
    np.save(temporary, drawings)
    temporary.replace(cache)
    return drawings


def compose(drawing: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """`drawing` (…, SIZE, SIZE, 4) over a plain colour: RGB in [-1, 1], float32, (…, SIZE, SIZE, 3)."""
    rgba = drawing.astype(np.float32) / 255
    background = np.asarray(colour, np.float32) / 255
    return (rgba[..., :3] + background * (1 - rgba[..., 3:])) * 2 - 1


if __name__ == "__main__":
    print("drawings", fetch_drawings().shape)
