"""The database file: one connection, held exclusively, transactions, and rows that may be damaged."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from ...models.errors import BundleError, RequestError
from ..log import say
from .records import disk_refusal

T = TypeVar("T")
SCHEMA = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS settings (owner TEXT, name TEXT, value BLOB NOT NULL, PRIMARY KEY (owner, name));
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, status TEXT NOT NULL, place REAL NOT NULL, data BLOB NOT NULL, options BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, place);
CREATE TABLE IF NOT EXISTS images (
    id TEXT PRIMARY KEY, job TEXT NOT NULL, number INTEGER NOT NULL, file TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL,
    deleted REAL, data BLOB NOT NULL, settings BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS images_by_job ON images (job, number);
CREATE TABLE IF NOT EXISTS begun (job TEXT PRIMARY KEY, times INTEGER NOT NULL);
"""


class Database:
    """SQLite in WAL mode. Every method may be called from any thread.

    Raises:
        RequestError: the file cannot be opened, another server uses it, or a newer version wrote it.
        BundleError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._told: set[str] = set()
        """Damaged rows that the log has named."""
        if path.is_dir():
            raise RequestError(f"{path}: a folder, expected the server's database; move it away, or choose another folder with --data")
        try:
            self._db = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
        except sqlite3.Error as error:
            raise RequestError(f"{path}: cannot be opened ({error}); choose another folder with --data") from error
        self._db.text_factory = _text
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._db.close()
            if "locked" in str(error):
                raise RequestError(
                    f"{path.parent}: another server uses this data folder; stop it, or choose another with --data"
                ) from error
            raise RequestError(f"{path}: cannot be opened ({error}); choose another folder with --data") from error
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            self._db.close()
            raise BundleError(f"{path}: damaged ({error}); move it away to begin with an empty queue; the images beside it stay") from error

    def _open(self) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_TABLES)
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        schema = self._number("schema", SCHEMA)
        if schema != SCHEMA:
            self._db.close()
            raise RequestError(f"{self.path}: schema {schema}, expected {SCHEMA}; upgrade diffusette, or choose another folder with --data")

    def close(self) -> None:
        """Write what waits and close the file."""
        with self._lock:
            self._db.close()

    def _number(self, name: str, default: int) -> int:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None:
            self._db.execute("INSERT INTO meta VALUES (?, ?)", (name, default))
        return default if row is None else int(row[0])

    def next_run(self) -> int:
        """How often the store was opened by a server, this time included."""
        with self.writing():
            run = self._number("runs", 0) + 1
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'runs'", (run,))
        return run

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """A transaction.

        Raises:
            Refused: the disk is full, or does not take it; nothing was changed.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise disk_refusal(error) from error
                raise

    def rows(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def decoded(self, table: str, identifier: object, data: object, kind: type[T]) -> T | None:
        """The JSON of a row; None, and a line on stderr, if it is damaged."""
        try:
            found = msgspec.json.decode(cast("bytes", data), type=kind)
            if getattr(found, "id", identifier) == identifier:
                return found
            reason = "it holds another id"
        except (msgspec.MsgspecError, TypeError, ValueError) as error:  # TypeError: NULL or a number in the place of text
            reason = str(error)
        self.damaged(table, identifier, reason)
        return None

    def damaged(self, table: str, identifier: object, reason: str) -> None:
        """Say on stderr, once, that a row is skipped."""
        row = f"{table}, id {ascii(identifier)[:60]}"
        if row not in self._told and len(self._told) < 1000:
            self._told.add(row)
            say(f"{self.path}: {row}: the row is damaged ({reason[:200]}) and was skipped")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
