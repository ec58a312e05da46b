"""Jobs, images and settings in SQLite (WAL), so that `kill -9` loses nothing that was finished.

Every method may be called from any thread. A damaged row is skipped, and the log names it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .database import Database
from .records import ENDED, ID_PATTERN, Entry, Image, Job, Options, Refused

KEPT_JOBS = 5000
"""Ended jobs that are kept; their images stay."""


_FILE = re.compile(rf"{ID_PATTERN}\.(png|jpg|webp)")


class Stored(NamedTuple):
    """An image, where its file is, and how it was made."""

    image: Image
    number: int
    """Index in its job."""
    file: str
    settings: dict[str, Any]


class Store(Database):
    """Jobs, images and settings in the database of the data folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._unsaved: dict[str, tuple[Job, Options, float, int]] = {}
        """Jobs whose last change could not be written, because the disk did not take it."""

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        """A transaction, with the jobs that could not be written before; raises what `writing` raises."""
        with self._lock:
            with self.writing() as db:
                for unsaved in self._unsaved.values():
                    _put(db, *unsaved)
                yield db
            self._unsaved.clear()

    def put_jobs(self, entries: Iterable[Entry]) -> None:
        """Write jobs.

        Raises:
            Refused: the disk is full.
        """
        with self._writing() as db:
            for entry in entries:
                _put(db, entry.job, entry.options, entry.place, entry.begun)

    def keep_jobs(self, entries: Iterable[Entry]) -> None:
        """Write new states of jobs, or remember them until the disk takes them."""
        kept = list(entries)
        try:
            self.put_jobs(kept)
        except Refused:
            with self._lock:
                for entry in kept:
                    self._unsaved[entry.job.id] = (entry.job, entry.options, entry.place, entry.begun)

    def waiting(self) -> list[Entry]:
        """Jobs that have not ended, in the order of the queue; those that were running when the server died come first."""
        query = (
            "SELECT id, data, options, place, coalesce(times, 0) FROM jobs LEFT JOIN begun ON job = id "
            "WHERE status IN ('queued', 'running') ORDER BY status = 'queued', place"
        )
        found: list[Entry] = []
        for identifier, data, options, place, begun in self.rows(query):
            job, known = self.decoded("jobs", identifier, data, Job), self.decoded("jobs", identifier, options, Options)
            if job is None or known is None:
                continue
            images = tuple(stored.image for stored in self.images_of(job.id))
            numbers = (place if isinstance(place, float) else 0.0, begun if isinstance(begun, int) else 0)
            found.append(Entry(msgspec.structs.replace(job, images=images), known, *numbers))
        return found

    def job(self, identifier: str) -> Job | None:
        """The job of that id, with its images."""
        with self._lock:
            unsaved = self._unsaved.get(identifier)
        if unsaved is not None:
            return self._with_images(unsaved[0])
        jobs = [self.decoded("jobs", identifier, data, Job) for (data,) in self.rows("SELECT data FROM jobs WHERE id = ?", (identifier,))]
        return self._with_images(jobs[0]) if jobs and jobs[0] is not None else None

    def ended(self, limit: int) -> list[Job]:
        """The last jobs that ended, the newest first; without live ones of which no image stayed."""
        marks = ", ".join("?" * len(ENDED))
        query = f"SELECT id, data FROM jobs WHERE status IN ({marks}) ORDER BY id DESC LIMIT ?"  # noqa: S608  # only marks
        found: list[Job] = []
        for identifier, data in self.rows(query, (*sorted(ENDED), 10 * limit)):
            bare = self.decoded("jobs", identifier, data, Job)
            job = None if bare is None else self._with_images(bare)
            if job is not None and (job.images or not job.live):
                found.append(job)
            if len(found) == limit:
                break
        return found

    def _with_images(self, job: Job) -> Job:
        return msgspec.structs.replace(job, images=tuple(stored.image for stored in self.images_of(job.id) if not stored.image.deleted))

    def add_image(self, stored: Stored) -> None:
        """Add an image whose file is already in place.

        Raises:
            Refused: the disk is full.
        """
        image = stored.image
        values = (image.id, image.job, stored.number, stored.file, image.model, image.prompt, None)
        with self._writing() as db:
            blobs = (msgspec.json.encode(image), msgspec.json.encode(stored.settings))
            db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, *blobs))

    def image(self, identifier: str) -> Stored | None:
        """The image of that id, deleted or not."""
        return next(iter(self._images("id = ?", (identifier,), 1)), None)

    def images_of(self, job: str) -> list[Stored]:
        """The images of a job, in order."""
        return sorted(self._images("job = ?", (job,), 10_000), key=lambda stored: stored.number)

    def search(self, text: str, model: str, before: str, limit: int) -> list[Image]:
        """Images that are not deleted, newest first: those whose prompt has every word of `text`, older than the image `before`."""
        tests, values = ["deleted IS NULL"], list[str]()
        for word in text.split()[:32]:
            tests.append("prompt LIKE ? ESCAPE '\\'")
            values.append("%" + re.sub(r"([\\%_])", r"\\\1", word) + "%")
        for test, value in (("model = ?", model), ("id < ?", before)):
            if value:
                tests.append(test)
                values.append(value)
        return [stored.image for stored in self._images(" AND ".join(tests), tuple(values), limit)]

    def deleted_before(self, moment: float) -> list[Stored]:
        """Images that were deleted before `moment`, in Unix seconds."""
        return self._images("deleted < ?", (moment,), 100_000)

    def _images(self, test: str, values: tuple[object, ...], limit: int) -> list[Stored]:
        query = f"SELECT id, data, number, file, settings, deleted FROM images WHERE {test} ORDER BY id DESC LIMIT ? OFFSET ?"  # noqa: S608  # own
        found: list[Stored] = []
        for offset in count(0, limit):
            rows = self.rows(query, (*values, limit, offset))
            found += [stored for row in rows if (stored := self._stored(*row)) is not None]
            if len(rows) < limit or len(found) >= limit:
                break
        return found[:limit]

    def _stored(self, identifier: object, data: object, number: object, file: object, settings: object, deleted: object) -> Stored | None:
        image = self.decoded("images", identifier, data, Image)
        known = self.decoded("images", identifier, settings, dict[str, Any])
        if image is None or known is None:
            return None
        if not (isinstance(file, str) and _FILE.fullmatch(file) and isinstance(number, int)):
            self.damaged("images", identifier, "its file or its number is wrong")
            return None
        return Stored(msgspec.structs.replace(image, deleted=deleted is not None), number, file, known)

    def mark(self, identifiers: Iterable[str], *, deleted: bool) -> None:
        """Delete images softly, or restore them."""
        when = time.time() if deleted else None
        with self._writing() as db:
            db.executemany("UPDATE images SET deleted = ? WHERE id = ?", [(when, one) for one in identifiers])

    def forget(self, identifiers: Iterable[str]) -> None:
        """Remove images from the index for good."""
        with self._writing() as db:
            db.executemany("DELETE FROM images WHERE id = ?", [(one,) for one in identifiers])

    def files(self) -> set[str]:
        """The file of every image."""
        return {str(row[0]) for row in self.rows("SELECT file FROM images")}

    def last_id(self) -> str:
        """The newest id in use; empty if there is none."""
        newest = "SELECT max(id) FROM (SELECT id FROM jobs UNION ALL SELECT id FROM images)"
        rows = self.rows(f"{newest} WHERE length(id) = 25 AND id NOT GLOB '*[^0-9a-v]*'")
        return str(rows[0][0] or "")

    def prune(self) -> None:
        """Drop the oldest ended jobs."""
        with self._writing() as db:
            db.execute(
                "DELETE FROM jobs WHERE status NOT IN ('queued', 'running') AND id NOT IN "
                "(SELECT id FROM jobs WHERE id IS NOT NULL ORDER BY id DESC LIMIT ?)",
                (KEPT_JOBS,),
            )
            db.execute("DELETE FROM begun WHERE job NOT IN (SELECT id FROM jobs WHERE status IN ('queued', 'running'))")

    def settings(self, owner: str) -> dict[str, Any]:
        """The settings that `put_settings` wrote."""
        rows = self.rows("SELECT name, value FROM settings WHERE owner = ?", (owner,))
        lists = {name: self.decoded("settings", name, _listed(value), list[Any]) for name, value in rows}
        return {name: found[0] for name, found in lists.items() if found}

    def put_settings(self, owner: str, settings: Mapping[str, object]) -> None:
        """Replace all settings of an owner: the page, or an API that keeps some."""
        rows = [(owner, name, msgspec.json.encode(value)) for name, value in settings.items()]
        with self._writing() as db:
            db.execute("DELETE FROM settings WHERE owner = ?", (owner,))
            db.executemany("INSERT INTO settings VALUES (?, ?, ?)", rows)


def _put(db: sqlite3.Connection, job: Job, options: Options, place: float, begun: int) -> None:
    bare = msgspec.structs.replace(job, images=(), position=None, progress=None)
    values = (job.id, job.status, place, msgspec.json.encode(bare), msgspec.json.encode(options))
    db.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?)", values)
    if begun and job.status not in ENDED:
        db.execute("INSERT OR REPLACE INTO begun VALUES (?, ?)", (job.id, begun))
    else:
        db.execute("DELETE FROM begun WHERE job = ?", (job.id,))


def _listed(value: object) -> object:
    """JSON as a list with one element, so that null is told from damage."""
    return b"[" + value + b"]" if isinstance(value, bytes) else value
