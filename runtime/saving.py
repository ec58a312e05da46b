"""Image files with all their marks: watermark, settings, the words that AI made the image, and a signature, in this order.

The signature comes last, since it covers every byte of the file.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from ..models.errors import RequestError
from ..models.formats.atomic_file import replace_file
from .images import image_io
from .metadata import image_files
from .metadata.image_files import Disclosure, Format
from .metadata.record import Record, tool
from .provenance.c2pa_signer import Signer, open_signer
from .provenance.claim import Claim
from .provenance.marks import Marks
from .provenance.soft_binding import Mark
from .result import Picture
from .watermark.marker import Marked, Marker


class ImageWriter:
    """Writes images with their marks. Threads may share it.

    Args:
        marks: the settings; None takes them from the environment.

    Attributes:
        marks: the settings.
        watermark: the watermark of the last image, as its record names it; "off", or nothing if the image was too small.
        notes: why images are not signed although they could be, or carry another identifier, for the user.
    """

    def __init__(self, marks: Marks | None = None) -> None:
        self.marks = Marks() if marks is None else marks
        self.notes: tuple[str, ...] = ()
        self._signer: Signer | None = None
        self._opened = False
        self._turn = threading.Lock()
        self._marker = Marker(self.marks)
        self.watermark = ""

    def check(self) -> None:
        """Make sure, before anything is generated, that the marks that were asked for can be made.

        Raises:
            RequestError: they cannot; the message says why.
            BundleError: TrustMark's networks cannot be opened.
        """
        if self.marks.asked:
            self._open()
        self.notes += self._marker.settings.notes

    def check_size(self, size: Callable[[], tuple[int, int]]) -> None:
        """Check that an image of the width and height that `size` returns can have the marks that were asked for.

        Raises:
            RequestError: it is too small for a watermark.
        """
        self._marker.check_size(size)

    @property
    def signs(self) -> bool:
        """Whether images are signed. The first call makes the key, if there is none."""
        return self._open() is not None

    def encode(
        self,
        picture: Picture,
        kind: Format,
        *,
        metadata: bool = True,
        ai: bool = True,
        quality: int = 95,
        parent: bytes | None = None,
    ) -> bytes:
        """Encode an image with its marks.

        Args:
            picture: the image with its record.
            kind: PNG, JPEG or WEBP.
            metadata: whether prompt and settings are in the file.
            ai: whether the file says that AI made the image; without it, the file is not signed either.
            quality: 1 to 100, for JPEG and WebP.
            parent: the file that the image started from; its own signed manifest is kept.

        Raises:
            RequestError: a mark that was asked for cannot be made; or as in `image_files.encode`.
        """
        signer = self._open() if ai else None
        edited = parent is not None or "init" in picture.record.extra
        marked = self._marker.mark(picture.image, edited=edited, parent=parent) if ai else Marked(picture.image, None)
        self.watermark = marked.record
        disclosure = self._disclosure(picture, prompt=metadata, unique=signer is not None or bool(self.marks.issuer))
        record = structs.replace(picture.record, watermark=marked.record, input_watermark=marked.carried) if metadata else None
        data = image_files.encode(marked.image, kind, record, ai=ai, quality=quality, edited=edited, disclosure=disclosure)
        if signer is None:
            return data
        return signer.sign(data, kind, self._claim(picture, disclosure, marked.mark, edited=edited), parent)

    def write(
        self, picture: Picture, path: Path, *, metadata: bool = True, ai: bool = True, quality: int = 95, parent: bytes | None = None
    ) -> None:
        """Write an image to `path`, in the format of its extension, as `encode` does it. The file is replaced atomically.

        Raises:
            RequestError: an unknown extension, or the file cannot be written; or as in `encode`.
            ResourceError: the disk is full.
        """
        kind = image_files.format_of(path)
        replace_file(path, self.encode(picture, kind, metadata=metadata, ai=ai, quality=quality, parent=parent))

    def differences(self, record: Record | None) -> list[str]:
        """Notes on why the last image has other pixels than the one with this `record`, although it was generated in the same way."""
        if record is None or not self.watermark or self.watermark == record.watermark:
            return []
        was, now = record.watermark or "none", self.watermark
        return [f"the watermark of the original is {was}, this one's is {now}: the pixels differ a little; see --watermark-id"]

    def _open(self) -> Signer | None:
        """The signer, opened once; None if images are not signed."""
        with self._turn:
            if not self._opened:
                try:
                    self._signer = open_signer(self.marks)
                except RequestError as error:
                    if self.marks.asked:
                        raise
                    self.notes += (f"images are not signed: {error}",)
                self._opened = True
            return self._signer

    def _disclosure(self, picture: Picture, *, prompt: bool, unique: bool) -> Disclosure:
        """What the file says about the system. Time and identifier differ from file to file, so they need a reason."""
        name, _, version = tool().partition(" ")
        marks, record = self.marks, picture.record
        shows = marks.sign_prompt and prompt
        return Disclosure(
            provider=marks.issuer,
            system=marks.system or name,
            version=marks.system_version or ("" if marks.system else version),
            time=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if unique else "",
            identifier=f"urn:uuid:{uuid.uuid4()}" if unique else "",
            prompt="\n".join(filter(None, (record.prompt, record.negative and f"Negative prompt: {record.negative}"))) if shows else "",
            prompt_writer=marks.prompt_writer if shows else "",
        )

    def _claim(self, picture: Picture, said: Disclosure, mark: Mark | None, *, edited: bool) -> Claim:
        agent, _, version = tool().partition(" ")
        record = picture.record
        return Claim(
            edited=edited,
            agent=agent,
            agent_version=version,
            provider=said.provider,
            system=said.system,
            system_version=said.version,
            identifier=said.identifier,
            time=said.time,
            model=record.model,
            fingerprint=record.model_hash,
            prompt=record.prompt if said.prompt else "",
            negative=record.negative if said.prompt else "",
            prompt_writer=said.prompt_writer,
            mark=mark,
            timestamped=bool(self.marks.timestamp),
        )


def as_before(marks: Marks, record: Record | None) -> Marks:
    """`marks` for an image that is made again from its `record`: one without a watermark gets none, unless it is asked for."""
    off = record is not None and record.watermark == "off" and marks.watermark == "auto"
    return dataclasses.replace(marks, watermark="off") if off else marks


def save(picture: Picture, path: str | Path, *, marks: Marks | None = None, parent: str | Path | bytes | None = None) -> None:
    """Write an image with its settings and marks.

    Args:
        picture: from `Result.pictures`, or an event of `Pipeline.steps`.
        path: a name that ends in .png, .jpg, .jpeg or .webp.
        marks: how the file is marked; None takes the settings from the environment, and signs if the extra `sign` is installed.
        parent: the file that the image started from (`init`), or its bytes; its own signature is kept within the new one.

    Raises:
        RequestError: an unknown extension, the file cannot be written, or a signature that was asked for cannot be made.
        ResourceError: the disk is full.

    Example:
        >>> diffusette.save(result.pictures[0], "fox.png", marks=diffusette.Marks(issuer="Example Ltd", system="Example Paint"))
    """
    data = image_io.file_bytes(Path(parent), "parent") if isinstance(parent, (str, Path)) else parent
    ImageWriter(marks).write(picture, Path(path), parent=data)
