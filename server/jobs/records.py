"""What the API says about jobs and images, and what the server keeps beside it."""

from __future__ import annotations

import errno
import secrets
import sqlite3
import threading
import time
from typing import Any, Literal

import msgspec

from ...models.errors import BundleError, DiffusetteError, NumericalError, ProviderError, RequestError, ResourceError
from ...runtime.request import specs

Status = Literal["queued", "running", "done", "failed", "cancelled"]
Phase = Literal["waiting", "opening", "encoding", "denoising", "decoding", "saving"]
Code = Literal[
    "invalid_request",
    "not_found",
    "unsupported",
    "queue_full",
    "rate_limited",
    "timeout",
    "too_large",
    "unauthorized",
    "forbidden",
    "out_of_memory",
    "disk_full",
    "disk_error",
    "model_error",
    "cancelled",
    "stopping",
    "internal",
]
ENDED: frozenset[Status] = frozenset({"done", "failed", "cancelled"})


class Refused(Exception):  # noqa: N818  # a refusal, in the words of the API
    """A request that cannot be served.

    Attributes:
        code: a stable word.
        message: what was expected, what came, what to do.
        field: the field of the request at fault, if one is.
        status: the HTTP status, if it is not the usual one for `code`.
    """

    def __init__(self, code: Code, message: str, field: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.field = field
        self.status = status


class Failure(msgspec.Struct, frozen=True):
    """Why a job failed or a request was refused."""

    code: Code
    message: str
    field: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far a running job is."""

    phase: Phase
    image: int
    """Index of the image, from 0."""
    count: int
    step: int
    steps: int
    done: float
    """Share of the job's work that is done, 0 to 1."""
    eta: float | None
    """Seconds left, from measured times; null until there are any."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image in the gallery."""

    id: str
    job: str
    url: str
    thumbnail: str
    width: int
    height: int
    seed: int
    prompt: str
    negative: str
    model: str
    created: float
    """Unix seconds."""
    flagged: bool = False
    deleted: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the API shows it."""

    id: str
    kind: Literal["generate", "open"]
    status: Status
    model: str
    client: str = ""
    """Whose turn it is; the queue is fair between clients."""
    live: bool = False
    prompt: str = ""
    request: dict[str, Any] = {}
    """The fields as asked; images are replaced by {"image": id} or true."""
    resolved: dict[str, Any] | None = None
    """What was decided: width, height, steps, sampler, schedule, guidance, seed, plan, provider."""
    created: float
    started: float | None = None
    ended: float | None = None
    progress: Progress | None = None
    images: tuple[Image, ...] = ()
    notes: tuple[str, ...] = ()
    error: Failure | None = None
    position: int | None = None
    """Place in the queue, from 0; null if the job does not wait."""


class Options(msgspec.Struct, frozen=True):
    """What the server knows about a job beside what it shows."""

    seed: int
    """The seed of the first image, drawn when the job came, so that a job that is run again gives the same images."""
    variation_seed: int
    count: int = 1
    format: Literal["PNG", "JPEG", "WEBP"] = "PNG"
    quality: int = 95
    partials: int = 0
    """Unfinished images that a streaming client asked for, for each image."""
    waits: bool = False
    """A client holds its connection open for the result."""


class Entry:
    """A job that waits or runs: the record, and what stops it."""

    def __init__(self, job: Job, options: Options, place: float = 0.0, begun: int = 0) -> None:
        self.job = job
        self.options = options
        self.place = place
        """Number that sorts the queue."""
        self.begun = begun
        """Times that it was begun since its last image, if the server did not stop it itself."""
        self.cancelled = threading.Event()
        self.skipped = threading.Event()
        """Give up the current image and go on with the next one."""
        self.preview: tuple[int, bytes] | None = None
        """The latest preview, as (index of the image, JPEG)."""
        self.partials: list[tuple[int, int, bytes]] = []
        """(index of the image, number of the partial image, file), as far as `Options.partials` asks for them."""


class Identifiers:
    """Makes ids: random, safe in URLs, and sortable by time even if the clock jumps back."""

    def __init__(self, last: str = "") -> None:
        self._lock = threading.Lock()
        self._last = int(last[:9], 32) if last else 0

    def new(self) -> str:
        """An id of 25 characters: 9 of time, 16 of chance."""
        with self._lock:
            self._last = max(time.time_ns() // 1_000_000, self._last + 1)
            stamp = self._last
        return _base32(stamp, 9) + _base32(secrets.randbits(80), 16)


ID_PATTERN = r"[0-9a-v]{25}"
_DIGITS = "0123456789abcdefghijklmnopqrstuv"


def _base32(number: int, length: int) -> str:
    return "".join(_DIGITS[number >> 5 * place & 31] for place in reversed(range(length)))


def refusal_of(error: Exception) -> Refused:
    """`error` in the words of the API; unexpected ones are not shown, since their text may hold paths."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, (sqlite3.Error, OSError)) and not isinstance(error, (ConnectionError, TimeoutError)):
        return disk_refusal(error)
    if isinstance(error, RequestError):
        return Refused("invalid_request", str(error), _field_of(str(error)))
    if isinstance(error, (MemoryError, ResourceError)):
        return Refused("out_of_memory", str(error) or "not enough memory: generate a smaller image")
    if not isinstance(error, DiffusetteError):
        return Refused("internal", "an unexpected error; the server's log has the details")
    known = isinstance(error, (BundleError, ProviderError, NumericalError))
    return Refused("model_error", str(error)) if known else Refused("cancelled", "the job was cancelled")


def disk_refusal(error: BaseException) -> Refused:
    """What a disk, or the database on it, did not do; the message holds no paths."""
    reason = getattr(error, "strerror", None) or (str(error) if isinstance(error, sqlite3.Error) else "")
    number, name = getattr(error, "errno", None), str(getattr(error, "sqlite_errorname", ""))
    unwritten = name.startswith("SQLITE_IOERR") and "READ" not in name  # SQLite says so, too, if a file cannot grow
    if isinstance(error, ResourceError) or number in {errno.ENOSPC, errno.EDQUOT} or name == "SQLITE_FULL" or unwritten:
        return Refused("disk_full", "the disk is full: free some space, then try again; nothing was changed")
    said = f" ({reason})" if reason else ""
    return Refused("disk_error", f"the server's data folder cannot be read or written{said}: mend that on the server, then try again")


def _field_of(message: str) -> str | None:
    """The field of `Request` that a message of the runtime begins with."""
    names = [message.partition(":")[0].partition(",")[0].strip().replace(" ", "_"), message.partition(" ")[0]]
    aliases = {"init_image": "init", "negative_prompt": "negative"}
    return next((found for name in names if (found := aliases.get(name, name)) in specs()), None)
