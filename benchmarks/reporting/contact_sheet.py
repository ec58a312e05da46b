"""A contact sheet: the first image of each row, side by side, with what set the rows apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...models.formats.atomic_file import replace_file
from ..results import Row

COLUMNS = 6
CELL = 256
"""Pixels of an image's longer side on the sheet; smaller ones are enlarged by a whole number."""
_LINE, _GAP = 16, 6


def words(one: Row) -> str:
    """The row's label, at most two lines."""
    engine = "" if one.engine == "diffusette" else f"{one.engine} "
    return f"{engine}{one.precision} {one.provider}\n{one.steps} steps, {one.memory}"


def save(pictures: Sequence[tuple[str, Path]], path: Path) -> None:
    """Write the sheet of `pictures` (words, file) as PNG to `path`; write nothing if there are none.

    Raises:
        RequestError, ResourceError: it cannot be written.
    """
    if not pictures:
        return
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = CELL + _GAP, CELL + 2 * _LINE + _GAP
    out = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(12)
    for index, (text, file) in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = _GAP + column * width, _GAP + row * height
        draw.multiline_text((left, top), text, "black", font, spacing=2)
        with Image.open(file) as image:
            out.paste(_fitted(image.convert("RGB")), (left, top + 2 * _LINE))
    data = io.BytesIO()
    out.save(data, "PNG")
    replace_file(path, data.getvalue())


def _fitted(image: Image.Image) -> Image.Image:
    longer = max(image.size)
    if longer <= CELL:
        return image.resize((image.width * (CELL // longer), image.height * (CELL // longer)), Image.Resampling.NEAREST)
    return image.resize((max(1, image.width * CELL // longer), max(1, image.height * CELL // longer)), Image.Resampling.LANCZOS)
