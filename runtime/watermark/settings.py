"""What is written into images: which watermark, with which identifier and key."""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import BundleError, RequestError
from ...models.formats.atomic_file import create_private
from ...models.formats.small_file import read_bytes
from ..provenance.marks import Marks
from .embed import LARGEST_ID
from .pattern import DEFAULT_KEY

FILE = "watermark-id"
UNNAMED = 0
"""The identifier where nobody can be named: no folder to keep one in, and no system."""


@dataclass(frozen=True)
class Settings:
    """How images are watermarked.

    Attributes:
        on: whether they are.
        asked: an image that cannot carry a watermark is an error.
        identifier: 0 to 4,294,967,295.
        key: of our own watermark.
        trustmark: the folder with Adobe's networks; None writes our own watermark.
        notes: for the user.
    """

    on: bool
    asked: bool = False
    identifier: int = UNNAMED
    key: str = DEFAULT_KEY
    trustmark: Path | None = None
    notes: tuple[str, ...] = ()


def settings_of(marks: Marks) -> Settings:
    """The settings in `marks`. The installation's identifier is made at first use.

    Raises:
        RequestError: an identifier that is not a number of 32 bits.
    """
    if marks.watermark == "off":
        return Settings(on=False)
    word, _, folder = marks.watermark.partition("=")
    identifier, notes = _identifier(marks)
    trustmark = Path(folder) if word == "trustmark" else None
    return Settings(True, word != "auto", identifier, marks.watermark_key or DEFAULT_KEY, trustmark, notes)


def _identifier(marks: Marks) -> tuple[int, tuple[str, ...]]:
    """The identifier that was given, or else the application's, or else this installation's."""
    given = str(marks.watermark_id)
    if given:
        try:
            number = int(given, 0)
        except ValueError:
            number = -1
        if not 0 <= number <= LARGEST_ID:
            raise RequestError(f"watermark id: {given[:40]!r}, expected a number from 0 to {LARGEST_ID}, or one such as 0x1a2b3c4d")
        return number, ()
    if marks.issuer or marks.system:
        return application_id(marks.issuer, marks.system), ()
    if marks.keys is None:
        return UNNAMED, ()
    try:
        return installation_id(Path(marks.keys) if marks.keys else _folder()), ()
    except RequestError as error:
        return UNNAMED, (f"images carry the watermark's identifier 0 instead of this installation's: {error}",)


def application_id(issuer: str, system: str) -> int:
    """The identifier of an application, the same on every computer: CRC-32 of its issuer and its name."""
    return zlib.crc32(f"{issuer}\n{system}".encode())


def _folder() -> Path:
    from ..provenance.installation_key import default_folder

    return default_folder()


def installation_id(folder: Path) -> int:
    """The identifier in `folder`, 32 random bits; it is made if there is none.

    Raises:
        RequestError: the folder cannot be used, or the file is damaged.
    """
    path = folder / FILE
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            create_private(path, f"{secrets.randbits(32):08x}\n".encode())
        return int(read_bytes(path, expected="this installation's watermark identifier").decode().strip(), 16) & LARGEST_ID
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror or error}); set DIFFUSETTE_KEYS or --watermark-id") from error
    except (BundleError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({error}); remove it to make a new one") from error
