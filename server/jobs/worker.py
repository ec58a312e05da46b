"""The worker: one thread, one resident model, one job after the other."""

from __future__ import annotations

import base64
import io
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from ...models.errors import Cancelled
from ...runtime.images import image_io
from ...runtime.pipeline import Pipeline
from ...runtime.request import Request
from ...runtime.resolve import ResolvedRequest, resolve
from ...runtime.result import Note, Picture, Step
from ..log import say
from ..phases import phase_of
from .events import EventLog
from .gallery import Gallery
from .models import Catalog
from .opening import Machine, Resident
from .progress import Memory, Meter
from .queue import Queue
from .records import Entry, Failure, Phase, Progress, Refused, Status
from .requests import IMAGES, decided, request_of, rest_of

INSIST = 0.03
"""Seconds between two attempts to stop a model call: a call that has just begun does not hear the first."""
WANTED = 5.0
"""Seconds for which asking for a preview keeps previews coming."""


class Worker:
    """Runs the jobs of a queue."""

    def __init__(self, queue: Queue, gallery: Gallery, catalog: Catalog, events: EventLog, inputs: Path, machine: Machine) -> None:
        self.model = Resident(machine, events)
        self.images = 0
        self.steps = 0
        self.busy_seconds = 0.0
        self._queue, self._gallery, self._catalog, self._events = queue, gallery, catalog, events
        self._inputs = inputs
        self._memory = Memory()
        self._wanted = 0.0
        self._turn = threading.Lock()
        """Held while a call is stopped, and while one job or image gives way to the next, so that no other one is stopped."""
        self._thread = threading.Thread(target=self._loop, name="diffusette-worker", daemon=True)
        self._saver = ThreadPoolExecutor(1, "diffusette-saver")
        """Writes an image while the next one is generated, of the same job or of the next: waiting for the disk costs nothing."""
        self._interrupted = threading.Event()
        self._interrupter = threading.Thread(target=self._insist, name="diffusette-interrupter", daemon=True)
        queue.interrupt = self._interrupted.set

    @property
    def resident(self) -> str | None:
        """Id of the open model."""
        return self.model.model

    def start(self) -> None:
        """Begin with the first job."""
        self._thread.start()
        self._interrupter.start()

    def stop(self) -> None:
        """Stop the running job, which waits for the next run of the server, and free the model."""
        self._queue.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._saver.shutdown()
        self.model.close()

    def want_previews(self) -> None:
        """Keep previews coming for some seconds, for clients that ask again and again."""
        self._wanted = time.monotonic() + WANTED

    def _loop(self) -> None:
        while (entry := self._queue.take()) is not None:
            started = time.perf_counter()
            try:
                saving = self._run(entry)
            except Cancelled:
                self._stopped(entry)
            except Exception as error:  # noqa: BLE001  # the worker outlives every job
                self._failed(entry, error)
            else:
                if saving is None:
                    self._finish(entry, "done")
                else:
                    with self._turn:
                        self._queue.save(entry)
                    self._saver.submit(self._saved, entry, saving)
            self.busy_seconds += time.perf_counter() - started

    def _stopped(self, entry: Entry) -> None:
        if self._queue.stopping and not entry.cancelled.is_set():
            with self._turn:
                self._queue.put_back(entry)
        else:
            self._finish(entry, "cancelled")

    def _saved(self, entry: Entry, saving: Future[None]) -> None:
        """End a job whose last image has been written, or not, by now; runs after that in the same thread."""
        error = saving.exception()
        if isinstance(error, Exception):
            self._failed(entry, error)
            return
        self._tell_notes(entry)
        self._finish(entry, "done")

    def _tell_notes(self, entry: Entry) -> None:
        for note in self._gallery.writer.notes:
            self._queue.note(entry, self._catalog.hide(note))

    def _failed(self, entry: Entry, error: Exception) -> None:
        refused = self._catalog.refusal_of(error)
        if refused.code == "internal":
            say("".join(traceback.format_exception(error)))
        self._finish(entry, "failed", Failure(refused.code, refused.message, refused.field))

    def _finish(self, entry: Entry, status: Status, error: Failure | None = None) -> None:
        with self._turn:
            self._queue.finish(entry, status, error)

    def _insist(self) -> None:
        """Stop the model call of the running entry whenever that is asked for, until it hears: one thread for all who ask."""
        while True:
            self._interrupted.wait()
            self._interrupted.clear()
            while (entry := self._queue.running) is not None and self._stop_call(entry):
                time.sleep(INSIST)

    def _stop_call(self, entry: Entry) -> bool:
        """Stop the model call of `entry` if it still is to be stopped, and say whether it was."""
        with self._turn:
            if self._queue.running is not entry or not self._to_stop(entry):
                return False
            self.model.cancel()
            return True

    def _to_stop(self, entry: Entry) -> bool:
        return entry.cancelled.is_set() or entry.skipped.is_set() or self._queue.stopping

    def _check(self, entry: Entry) -> None:
        if self._to_stop(entry):
            raise Cancelled("the job was cancelled")

    # One job

    def _run(self, entry: Entry) -> Future[None] | None:
        """Run a job; returns its last image on its way to the disk, if it has one."""
        self._check(entry)
        offer = self._catalog.find(entry.job.model)
        if self.resident != offer.id:
            self._queue.progress(entry, Progress("opening", 0, entry.options.count, 0, 0, 0.0, None))
        pipeline = self.model.open(offer, lambda: self._check(entry))
        if entry.job.kind == "open":
            return None
        images = self._images(entry)
        request = request_of(entry.job.request | dict.fromkeys(IMAGES), images, self._catalog)
        first = 1 + max((self._gallery.stored(image.id).number for image in entry.job.images), default=-1)
        if first >= entry.options.count:
            return None
        resolved = resolve(rest_of(request, entry.options, 0), offer.manifest)
        self._gallery.writer.check_size(lambda: resolved.size)
        shown = {name: value for name, value in entry.job.request.items() if name not in IMAGES}
        settings = {**shown, **decided(resolved), "count": 1}
        if resolved.variation > 0:
            settings["variation_seed"] = entry.options.variation_seed
        self._queue.update(entry, resolved={**decided(resolved), **self.model.facts()})
        for note in pipeline.notes:
            self._queue.note(entry, self._catalog.hide(note))
        key = (offer.id, resolved.passes[0].width * resolved.passes[0].height, resolved.guidance > 1, resolved.speed, resolved.sampler)
        passes = [(one.steps, one.width * one.height) for one in resolved.passes]
        meter = Meter(self._memory, key, entry.options.count, passes)
        run = _Run(entry, request, first, settings, meter, images.get("init"))
        while run.next < entry.options.count:
            try:
                self._images_of(run, pipeline, resolved)
            except Cancelled:
                if not entry.skipped.is_set() or entry.cancelled.is_set() or self._queue.stopping:
                    raise
                with self._turn:
                    entry.skipped.clear()
                self._queue.note(entry, f"image {run.next + 1} was skipped")
                run.next += 1
        self._queue.update(entry, resolved={**decided(resolved), **self.model.facts()})
        return run.saving

    def _images_of(self, run: _Run, pipeline: Pipeline, resolved: ResolvedRequest) -> None:
        """The images of a job from `run.next` on."""
        self._tell(run, "encoding")
        try:
            with self.model.watching(lambda component: self._runs(run, phase_of(component))):
                for event in pipeline.steps(rest_of(run.request, run.entry.options, run.next)):
                    self._check(run.entry)
                    self._happened(run, event, pipeline, resolved)
        except BaseException:
            with suppress(Refused):  # the disk is full: what stopped the images counts
                run.settle()
            raise

    def _runs(self, run: _Run, phase: Phase) -> None:
        """A component runs next, in that phase."""
        self._check(run.entry)
        if phase != run.phase:
            if run.step == 0:  # encoding is not a part of the first step
                run.meter.wait()
            self._tell(run, phase)

    def _tell(self, run: _Run, phase: Phase) -> None:
        run.phase = phase
        self._queue.progress(run.entry, run.meter.at(phase, run.next, run.step))

    def _happened(self, run: _Run, event: Step | Note | Picture, pipeline: Pipeline, resolved: ResolvedRequest) -> None:
        if isinstance(event, Note):
            self._queue.note(run.entry, self._catalog.hide(event.text))
        elif isinstance(event, Step):
            run.step = event.number
            run.meter.step(event.number)
            self.steps += 1
            self._tell(run, "denoising")
            if event.number < event.total:
                with self.model.watching(lambda _component: None):
                    self._show(run.entry, run.next, event, pipeline, resolved)
        else:
            self._tell(run, "saving")
            run.settle()
            run.saving = self._saver.submit(self._save, run, run.next, event)
            run.meter.finished()
            run.next, run.step = run.next + 1, 0

    def _save(self, run: _Run, number: int, picture: Picture) -> None:
        entry = run.entry
        settings = {**run.settings, "seed": picture.seed}
        if "variation_seed" in settings:
            settings["variation_seed"] += number
        image = self._gallery.add(picture, entry.job, number, entry.options, settings, run.parent)
        self.images += 1
        self._queue.add_image(entry, image)

    def _show(self, entry: Entry, image: int, event: Step, pipeline: Pipeline, resolved: ResolvedRequest) -> None:
        """A preview of a step, if anybody looks, and a partial image where one was asked for."""
        partial = partial_at(event.number, event.total, entry.options.partials)
        if partial is None and not self._events.listeners and time.monotonic() > self._wanted:
            return
        picture = pipeline.preview(event.denoised, cheap=True)
        if partial is not None:
            large = image_io.fit(picture, resolved.passes[-1].width, resolved.passes[-1].height)
            entry.partials.append((image, partial, _encoded(large, entry.options.format)))
            self._queue.watchers.wake(entry.job.id)
        jpeg = _encoded(picture, "JPEG")
        entry.preview = (image, jpeg)
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        self._events.publish("preview", {"job": entry.job.id, "image": image, "url": url}, fading=("preview", entry.job.id))

    def _images(self, entry: Entry) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in IMAGES:
            path = self._inputs / f"{entry.job.id}-{name}"
            if entry.job.request.get(name) is not None:
                found[name] = path.read_bytes()
        return found


class _Run:
    """A job on its way."""

    def __init__(
        self, entry: Entry, request: Request, first: int, settings: dict[str, Any], meter: Meter, parent: bytes | None = None
    ) -> None:
        self.entry = entry
        self.request = request
        self.next = first
        """Number of the image that comes next."""
        self.step = 0
        """Steps of it that are done."""
        self.phase: Phase = "encoding"
        self.settings = settings
        self.meter = meter
        self.saving: Future[None] | None = None
        """The image before, on its way to the disk."""
        self.parent = parent
        """The file that the images start from."""

    def settle(self) -> None:
        """Wait for the image that is being written.

        Raises:
            Refused: the disk did not take it.
        """
        saving, self.saving = self.saving, None
        if saving is not None:
            saving.result()


def partial_at(step: int, steps: int, partials: int) -> int | None:
    """Number of the partial image that follows step `step`, counted from 1; partial images are spread evenly over the steps."""
    wanted = [min(max(1, round(steps * (number + 1) / (partials + 1))), steps - 1) for number in range(min(partials, steps - 1))]
    return wanted.index(step) if step in wanted else None


def _encoded(image: Pictures.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
