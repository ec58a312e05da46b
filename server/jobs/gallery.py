"""Images as files: written whole or not at all, deleted softly, with thumbnails made when somebody looks."""

from __future__ import annotations

import io
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from ...models.errors import RequestError, ResourceError
from ...models.formats.atomic_file import replace_file
from ...runtime.images import image_io
from ...runtime.metadata.image_files import Format
from ...runtime.result import Picture
from ...runtime.saving import ImageWriter
from ..log import say
from .records import ID_PATTERN, Identifiers, Image, Job, Options, Refused, disk_refusal
from .store import Store, Stored

TRASH_SECONDS = 7 * 24 * 3600
THUMBNAIL = 256
"""Pixels of the longer side."""
ENDINGS: dict[Format, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
"""Content type by file extension."""
_OURS = re.compile(rf"({ID_PATTERN}\.(png|jpg|webp)|\.[0-9a-f]{{16}}\.part)")


class Gallery:
    """The images in the data folder: `images`, `trash` and `thumbnails`."""

    def __init__(self, folder: Path, store: Store, identifiers: Identifiers, writer: ImageWriter) -> None:
        self.writer = writer
        """Writes the images with their marks."""
        self._images, self._trash, self._thumbnails = (folder / name for name in ("images", "trash", "thumbnails"))
        self._store = store
        self._identifiers = identifiers
        for place in (self._images, self._trash, self._thumbnails):
            place.mkdir(parents=True, exist_ok=True)

    def add(
        self, picture: Picture, job: Job, number: int, options: Options, settings: dict[str, Any], parent: bytes | None = None
    ) -> Image:
        """Write an image and enter it into the index. `parent` is the file that the image started from.

        Raises:
            Refused: the disk is full, or does not take it; nothing is left behind.
            RequestError: a signature that was asked for cannot be made.
        """
        identifier = self._identifiers.new()
        name = f"{identifier}.{ENDINGS[options.format]}"
        data = self.writer.encode(picture, options.format, quality=options.quality, parent=parent)
        write(self._images / name, data)
        _flush(self._images / name)  # before the database names it
        image = Image(
            id=identifier,
            job=job.id,
            url=f"/api/v1/images/{identifier}/file",
            thumbnail=f"/api/v1/images/{identifier}/thumbnail",
            width=picture.image.width,
            height=picture.image.height,
            seed=picture.seed,
            prompt=picture.record.prompt,
            negative=picture.record.negative,
            model=job.model,
            created=time.time(),
            flagged=picture.flagged,
        )
        try:
            self._store.add_image(Stored(image, number, name, settings))
        except BaseException:
            (self._images / name).unlink(missing_ok=True)
            raise
        return image

    def stored(self, identifier: str) -> Stored:
        """The entry of an image, deleted or not.

        Raises:
            Refused: there is none.
        """
        found = self._store.image(identifier)
        if found is None:
            raise Refused("not_found", "no such image; it may have been deleted for good")
        return found

    def path(self, stored: Stored) -> Path:
        """The file of an image, wherever a crash in the middle of a move has left it.

        Raises:
            Refused: somebody took the file away.
        """
        for folder in (self._images, self._trash):
            if (folder / stored.file).is_file():
                return folder / stored.file
        raise Refused("not_found", "the image's file is gone from the data folder")

    def thumbnail(self, stored: Stored) -> bytes:
        """A small WebP, made once.

        Raises:
            Refused: the image's file is gone.
        """
        cached = self._thumbnails / f"{stored.image.id}.webp"
        if cached.is_file():
            return cached.read_bytes()
        image = image_io.read(self.path(stored))
        image.thumbnail((THUMBNAIL, THUMBNAIL), Pictures.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        with suppress(Refused):  # a full disk costs time alone
            write(cached, buffer.getvalue())
        return buffer.getvalue()

    def delete(self, identifiers: list[str]) -> None:
        """Move images to the trash.

        Raises:
            Refused: one does not exist.
        """
        self._move(identifiers, self._images, self._trash, deleted=True)
        self.purge()

    def restore(self, identifiers: list[str]) -> list[Image]:
        """Take images out of the trash.

        Raises:
            Refused: one does not exist, or was deleted for good.
        """
        for identifier in identifiers:
            self.path(self.stored(identifier))
        self._move(identifiers, self._trash, self._images, deleted=False)
        return [self.stored(identifier).image for identifier in identifiers]

    def _move(self, identifiers: list[str], source: Path, target: Path, *, deleted: bool) -> None:
        found = [self.stored(identifier) for identifier in identifiers]
        self._store.mark(identifiers, deleted=deleted)
        for stored in found:
            with suppress(OSError):  # being read, on Windows: `path` finds it where it is
                (source / stored.file).replace(target / stored.file)

    def erase(self, found: list[Stored]) -> None:
        """Delete images for good."""
        self._store.forget([stored.image.id for stored in found])
        for stored in found:
            for folder in (self._images, self._trash):
                remove(folder / stored.file)
            remove(self._thumbnails / f"{stored.image.id}.webp")

    def purge(self) -> None:
        """Empty the trash of what is older than a week."""
        old = self._store.deleted_before(time.time() - TRASH_SECONDS)
        if old:
            self.erase(old)

    def tidy(self) -> None:
        """Empty the trash of what is old, and remove what a crash left between writing a file and entering it."""
        self.purge()
        known = self._store.files()
        for folder in (self._images, self._trash, self._thumbnails):
            for path in folder.iterdir():
                ours = _OURS.fullmatch(path.name)
                stray = path.name not in known if folder != self._thumbnails else path.suffix == ".part"
                if ours and stray:
                    remove(path)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        Refused: the disk is full, or does not take it.
    """
    try:
        replace_file(path, data)
    except (ResourceError, RequestError) as error:
        cause = error.__cause__
        say(str(error))
        raise disk_refusal(cause if isinstance(cause, OSError) else error) from error


def remove(path: Path) -> None:
    """Remove a file of ours. What is not a file, or cannot be removed, stays where it is, and the log says so."""
    try:
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
    except OSError as error:
        say(f"{path}: cannot be removed ({error.strerror})")


def _flush(path: Path) -> None:
    """Wait until a file that was just renamed is on the disk, whatever happens to the machine."""
    try:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        if os.name == "posix":  # the name as well
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        remove(path)
        raise disk_refusal(error) from error
