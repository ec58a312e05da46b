"""Everything behind the APIs in one place: what is asked becomes a job here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ...models.errors import RequestError
from ...runtime.saving import ImageWriter
from ..limits import Limits
from ..log import say
from .events import EventLog
from .gallery import Gallery, remove, write
from .models import Catalog, Offer
from .opening import Machine
from .queue import Queue
from .records import Entry, Identifiers, Job, Options, Refused
from .requests import IMAGES, Asked, check, fresh_seed, options_for
from .store import Store, Stored
from .worker import Worker

LIVE_SECONDS = 30.0
"""A live image is moved to the trash if the next one of its client comes within this time: only the last of a burst stays."""
DEFAULT = Options(seed=0, variation_seed=0)


@dataclass
class Service:
    """The parts, opened and closed together."""

    limits: Limits
    catalog: Catalog
    store: Store
    events: EventLog
    gallery: Gallery
    queue: Queue
    worker: Worker
    inputs: Path
    identifiers: Identifiers
    log_prompts: bool = False
    started: float = field(default_factory=time.time)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops: streams end, waiting clients get an answer."""
    streams: threading.BoundedSemaphore = field(init=False)
    """Event streams that may still be opened."""
    _live: dict[str, tuple[Job, float]] = field(default_factory=dict[str, tuple[Job, float]])

    def __post_init__(self) -> None:
        self.streams = threading.BoundedSemaphore(self.limits.streams)

    def start(self) -> None:
        """Tidy up what a crash left, take up the queue, and open the first model. The log says whose images are not checked."""
        for sentence in self.catalog.unchecked():
            say(sentence)
        self.gallery.tidy()
        self.store.prune()
        self.queue.ended = self._ended
        waiting = self.store.waiting()
        self.queue.restore(waiting)
        known = {job.id for job in self.queue.current()}
        for path in self.inputs.iterdir():
            if path.name.partition("-")[0] not in known:
                remove(path)
        if not waiting:
            self.open_model(self.catalog.first)
        self.worker.start()

    def close(self) -> None:
        """Stop within a step; what waits is kept."""
        self.worker.stop()
        self.store.close()

    def submit(
        self,
        asked: Asked,
        model: str | None = None,
        options: Options = DEFAULT,
        *,
        client: str = "",
        live: bool = False,
        front: bool = False,
    ) -> Job:
        """Check a request and put it into the queue. Blocks while it reads images.

        Raises:
            Refused: it is refused; or the queue, or the disk, is full.
            RequestError: the runtime refuses it.
        """
        offer = self.catalog.find(model)
        resolved = check(asked, offer, self.catalog, self.limits)
        job = Job(
            id=self.identifiers.new(),
            kind="generate",
            status="queued",
            model=offer.id,
            client=client,
            live=live,
            prompt=str(asked.fields["prompt"]),
            request={**asked.fields, **asked.shown},
            created=time.time(),
        )
        if self.log_prompts:
            say(f"job {job.id}: {job.prompt!r}")
        self._write_inputs(job.id, asked.images)
        try:
            return self.queue.submit(job, options_for(resolved, options), front=front)
        except BaseException:
            self._remove_inputs(job.id)
            raise

    def open_model(self, offer: Offer, client: str = "") -> Job:
        """Put opening a model into the queue.

        Raises:
            Refused: the queue or the disk is full.
        """
        now = time.time()
        job = Job(id=self.identifiers.new(), kind="open", status="queued", model=offer.id, client=client, created=now)
        return self.queue.submit(job, msgspec.structs.replace(DEFAULT, seed=fresh_seed()))

    def _write_inputs(self, job: str, images: Mapping[str, bytes]) -> None:
        try:
            for name, data in images.items():
                write(self.inputs / f"{job}-{name}", data)
        except Refused:
            self._remove_inputs(job)
            raise

    def _remove_inputs(self, job: str) -> None:
        for name in IMAGES:
            remove(self.inputs / f"{job}-{name}")

    def _ended(self, entry: Entry) -> None:
        self._remove_inputs(entry.job.id)
        job, now = entry.job, time.monotonic()  # clocks jump
        if job.live and job.status == "done":
            last, ended = self._live.get(job.client, (None, 0.0))
            self._live[job.client] = job, now
            if last is not None and now - ended < LIVE_SECONDS:
                self._replace_live(last)
            while len(self._live) > 256:
                del self._live[next(iter(self._live))]

    def _replace_live(self, last: Job) -> None:
        """Move the images of the live job before to the trash; who wants one restores it."""
        identifiers = [image.id for image in last.images]
        try:
            self.gallery.delete(identifiers)
        except (Refused, OSError):  # erased meanwhile, or the disk is full or read-only: it stays
            return
        self.events.publish("gallery", {"deleted": identifiers, "restored": []})

    def forget(self, job: Job) -> None:
        """Erase the images of a job, for clients that want nothing kept."""
        found: list[Stored] = self.store.images_of(job.id)
        self.gallery.erase(found)
        self.events.publish("gallery", {"deleted": [stored.image.id for stored in found], "restored": []})


def open_service(
    data: Path, catalog: Catalog, limits: Limits, machine: Machine, writer: ImageWriter, *, log_prompts: bool = False
) -> Service:
    """Open the data folder. `writer` writes the images.

    Raises:
        RequestError: the folder cannot be written, or another server uses it.
        BundleError: its database is damaged.
    """
    try:
        inputs = data / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        for folder in (catalog.loras_folder, catalog.embeddings_folder):
            if folder.parent == data:  # another one is the user's: a name that is misspelt shall not become a folder
                folder.mkdir(exist_ok=True)
        store = Store(data / "diffusette.sqlite3")
        identifiers = Identifiers(store.last_id())
        events = EventLog(store.next_run() << 32)
        gallery = Gallery(data, store, identifiers, writer)
    except OSError as error:
        place, reason = error.filename or data, error.strerror or error
        raise RequestError(f"{place}: cannot be used ({reason}); make the data folder writable, or choose another with --data") from error
    except Refused as error:
        raise RequestError(f"{data}: {error.message}, or choose another data folder with --data") from error
    catalog.hidden[data] = "the data folder"
    queue = Queue(store, events, limits)
    worker = Worker(queue, gallery, catalog, events, inputs, machine)
    return Service(limits, catalog, store, events, gallery, queue, worker, inputs, identifiers, log_prompts=log_prompts)
