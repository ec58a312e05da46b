"""The licence of the weights travels with the bundle: its files are copied, and restrictions of use are written beside them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ...models.formats.small_file import read_bytes
from ...models.licences import restricted
from ...models.manifest import Source as Origin
from ..sources.diffusers_folder import LICENCE_FILE, Source

CHANGES = "CHANGES.md"
"""Says that the files were changed, and which restrictions apply to them."""
MAX_TEXT = 1 << 20


def read(path: Path | None) -> bytes | None:
    """Return the text of a licence that the source lacks.

    Raises:
        BundleError: not a regular file of at most 1 MiB.
    """
    return None if path is None else read_bytes(path, MAX_TEXT, "the text of a licence")


def copy(source: Source, text: bytes | None, folder: Path) -> None:
    """Copy the model card and licence files of `source` into `folder`, and write `text` beside them."""
    if source.path.is_dir():
        for path in _inside(source.folder):
            shutil.copyfile(path, folder / path.name)
    if text is not None:
        (folder / "LICENSE.txt").write_bytes(text)


def write_changes(origin: Origin, made_by: str, folder: Path) -> None:
    """Write `CHANGES.md` if the licence of `origin` restricts use."""
    licence = restricted(origin.licence)
    if licence is None:
        return
    texts = ", ".join(path.name for path in _inside(folder) if path.name != "README.md")
    where = f"its text: {texts}" if texts else f"its text was not with the weights; {_published(licence.text)}"
    revision = f", revision {origin.revision}" if origin.revision else ""
    (folder / CHANGES).write_text(
        f"""# Changes

{made_by} made this folder from the weights of {origin.name}{revision}. The files were changed: the weights became ONNX graphs,
and some have fewer bits; manifest.json has the precision of each.

## Restrictions of use

The weights are under {licence.title} ({where}). This licence restricts what the model may be used for. The restrictions apply
to this folder and to every model made from it. If you pass it on, pass on the licence's text and this file, and hold those who get it
to the same restrictions.
""",
        "utf-8",
    )


def warning(source: Source, text: bytes | None) -> str | None:
    """Say that a licence is unknown, or restricts use and its text is missing."""
    if source.licence == "unknown":
        return f"{source.path}: no licence is named in a README.md: recorded as unknown; make sure that you may pass it on"
    licence = restricted(source.licence)
    if licence is None:
        return None
    has = text is not None or (source.path.is_dir() and any(path.name != "README.md" for path in _inside(source.folder)))
    missing = "" if has else f"; its text is not with the source: {_published(licence.text)}, or export with --licence FILE"
    return (
        f"{licence.title} restricts what {source.name} and every model made from it may be used for: see {CHANGES} in the bundle{missing}"
    )


def _published(text: str) -> str:
    return f"add it before you pass the folder on ({text})" if text else "add it before you pass the folder on"


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if LICENCE_FILE.fullmatch(path.name) and path.is_file())
