"""Draw the README's contact sheet with the shipped bundle: `python models/demo/contact_sheet.py docs/contact-sheet.png`."""

from __future__ import annotations

from pathlib import Path

import click
import data
from PIL import Image

PROMPTS = (
    "red apple, flat style, blue background",
    "fox, noto style, teal background",
    "ghost, flat style, purple background",
    "rocket, noto style, black background",
    "panda, flat style, pink background",
    "pizza, noto style, green background",
    "octopus, flat style, yellow background",
    "castle, noto style, orange background",
    "strawberry, noto style, white background",
    "unicorn, flat style, teal background",
    "guitar, noto style, gray background",
    "cactus, flat style, brown background",
    "robot, noto style, yellow background",
    "rainbow, flat style, white background",
    "penguin, noto style, red background",
    "cupcake, flat style, blue background",
    "volcano, noto style, purple background",
    "frog, flat style, orange background",
    "sailboat, noto style, pink background",
    "smiling face with sunglasses, flat style, green background",
    "owl, noto style, brown background",
    "bicycle, flat style, gray background",
    "crown, noto style, black background",
    "sunflower, flat style, red background",
)
COLUMNS, GAP = 8, 4


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=data.HERE / "bundle")
@click.option("--seed", default=7)
def main(path: Path, bundle: Path, seed: int) -> None:
    from diffusette.runtime import pipeline  # noqa: TID251  # the recipe stands outside of the package

    drawer = pipeline.load(bundle, provider="cpu")
    images = [drawer.generate(prompt, seed=seed).images[0] for prompt in PROMPTS]
    cell = data.SIZE + GAP
    sheet = Image.new("RGB", (COLUMNS * cell - GAP, -(-len(images) // COLUMNS) * cell - GAP), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, COLUMNS)
        sheet.paste(image, (column * cell, row * cell))
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main()
