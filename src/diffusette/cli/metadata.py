"""`diffusette metadata`: the marks of image files, what they prove, and how the images were made."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..models.errors import RequestError
from . import console
from .options import as_json

if TYPE_CHECKING:
    from ..runtime.detector import Report

_PATH = click.Path(path_type=Path)


@click.command(short_help="Show the marks of images, and how they were made.")
@click.argument("files", type=_PATH, nargs=-1, required=True, metavar="FILE|FOLDER…")
@as_json
def metadata(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what marks an image FILE has, what each of them proves, and how the image was made.

    Reads C2PA signatures, watermarks, XMP, EXIF, and the settings of Diffusette, AUTOMATIC1111, ComfyUI and others. Of several files, or
    of a FOLDER with all its sub-folders, it shows one line each and a summary.
    """
    first, *others = files
    if others or first.is_dir():
        _many(files, as_json=as_json)
        return
    report, facts = _facts(first)
    if as_json:
        console.write_json({**facts, "marks": console.plain(report)})
        return
    console.write(f"{first}: {report.summary}\n\n{_marks(report)}\n\n{console.outline(_told(facts))}")


def _facts(path: Path) -> tuple[Report, dict[str, Any]]:
    from ..runtime.detector import examine

    report, found = examine(path)
    return report, found.facts()


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """The settings for people: what is not there is left out, and no mark is no proof."""
    mark = {"AI mark": "says that AI made or edited the image" if facts["ai"] else "none found"}
    return mark | {name.replace("_", " "): value for name, value in facts.items() if name != "ai" and value not in (None, "", {}, [], ())}


def _marks(report: Report) -> str:
    """Each mark with what it proves; those that are absent in one line each."""
    lines: list[str] = []
    for one in report.findings:
        lines.append(f"{one.mark}: {' '.join(one.says.split())}")
        if one.state not in {"absent", "not looked for"}:
            lines += [f"  proves: {one.proves}", f"  does not prove: {one.limits}"]
    return "\n".join(lines)


def _many(places: tuple[Path, ...], *, as_json: bool) -> None:
    """A line for each file, then how many there are of each verdict."""
    entries: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    with console.progress() as advance:
        for path in (path for place in places for path in _images(place)):
            advance(path.name, 0.0)
            entry = _entry(path)
            verdict = str(entry["verdict"])
            counts[verdict] += 1
            counts["ai"] += "marks" in entry and entry["marks"]["ai"]
            if as_json:
                entries.append(entry)
            else:
                console.write(f"{path}: {entry['summary']}".replace("\n", " "))
    summary = {name: counts[name] for name in ("signed", "altered", "marked", "unmarked", "unreadable", "ai")}
    if as_json:
        console.write_json({"files": entries, "summary": summary})
        return
    said = ", ".join(f"{number} {name}" for name, number in summary.items() if name != "ai")
    console.write(f"{sum(counts.values()) - counts['ai']} images: {said}; {counts['ai']} say that AI made or edited them")


def _entry(path: Path) -> dict[str, Any]:
    try:
        report, facts = _facts(path)
    except RequestError as error:
        return {"file": str(path), "verdict": "unreadable", "summary": f"unreadable: {error}"}
    return {"file": str(path), "verdict": report.verdict, "summary": report.summary, **facts, "marks": console.plain(report)}


def _images(place: Path) -> Iterator[Path]:
    """The image files of a folder and its sub-folders, in order, links to folders not followed; or the file itself."""
    from ..runtime.metadata.image_files import FORMATS

    if not place.is_dir():
        yield place
        return
    for folder, names, files in os.walk(place):
        names.sort()
        yield from (Path(folder) / name for name in sorted(files) if Path(name).suffix.lower() in FORMATS)
