"""What a language model reads: a line for each model, progress in words, links to files, small thumbnails, errors."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_types import Annotations, CallToolResult, ImageContent, ResourceLink, TextContent
from PIL import Image

from .error_codes import Refusal
from .generation import Drawn, Progress
from .local_worker import Facts

MAX_THUMBNAILS = 64_000
"""Bytes of all thumbnails of a result, in base64."""
_SIDE = 256
"""Largest side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Kept:
    """What is kept of an image: the file, and enough for a thumbnail."""

    path: Path
    seed: int
    flagged: bool
    bytes: int
    small: Image.Image


def line_of(facts: Mapping[str, Any]) -> str:
    """A model in a line, from `resident_model.describe`."""
    if "error" in facts:
        return f"{facts['model']}: cannot be opened: {facts['error']['message']}"
    size, need = facts["defaults"], facts["memory"]["plans"][facts["memory"]["auto"]]
    checked = "" if facts["safety"] == "on" else ", no safety checker"
    task = {"text": "text to image and image to image", "inpaint": "inpainting", "instruct": "editing by instruction"}.get(facts["task"])
    return (
        f"{facts['model']}: {facts['name']}, {task or facts['task']}, {size['width']}×{size['height']}, {size['steps']} steps, "
        f"licence {facts['licence']}, about {need / 2**30:.1f} GiB of memory{checked}"
    )


def described(progress: Progress) -> str:
    """Progress in words."""
    image = f"image {progress.image + 1} of {progress.count}, " if progress.count > 1 else ""
    step = f", step {progress.step} of {progress.steps}" if progress.phase == "denoising" and progress.steps else ""
    left = f", {progress.eta:.0f} s left" if progress.eta is not None and progress.eta >= 1 else ""
    return f"{image}{progress.phase}{step}{left}"


def told(images: Sequence[Kept], facts: Facts) -> str:
    """What a finished job did: files, seeds, seconds, notes."""
    lines = [f"{drawn.path} (seed {drawn.seed}{_warned(drawn)})" for drawn in images]
    lines.append(f"{facts['timings']['total']:.1f} s on {facts['provider']}")
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"])])


def _warned(drawn: Kept) -> str:
    return ", hidden: the safety checker flagged it" if drawn.flagged else ""


def kept(drawn: Drawn) -> Kept:
    """What stays in memory of an image."""
    assert drawn.path is not None
    small = drawn.picture.image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return Kept(drawn.path, drawn.picture.seed, drawn.picture.flagged, len(drawn.data), small)


def link(drawn: Kept) -> ResourceLink:
    """The file, for the user."""
    return ResourceLink(
        uri=drawn.path.as_uri(),
        name=drawn.path.name,
        mime_type="image/png",
        size=drawn.bytes,
        annotations=Annotations(audience=["user"], priority=1.0),
    )


def thumbnail(drawn: Kept, limit: int) -> ImageContent:
    """A JPEG of at most `limit` bytes in base64."""
    side, quality = _SIDE, 85
    while True:
        small = drawn.small.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        data = base64.b64encode(buffer.getvalue()).decode()
        if len(data) <= limit:
            return ImageContent(data=data, mime_type="image/jpeg")
        side, quality = side * 3 // 4, 75


def failed(refusal: Refusal) -> CallToolResult:
    """An error that the model can read, with its code; what a request calls init is the argument `image` of the tool."""
    message = re.sub(r"^init( image)?\b", "image", str(refusal))
    error = {"code": refusal.code, "message": message, "field": "image" if refusal.field == "init" else refusal.field}
    return CallToolResult(content=[TextContent(text=f"{refusal.code}: {message}")], structured_content={"error": error}, is_error=True)
