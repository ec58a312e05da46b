"""The host protocol: an application starts this process and speaks JSON lines on its standard input and output.

The first line out is `ready`. Every request has an id and gets exactly one last answer, `done` or `error`; progress, previews and images
come before it. The end of the input ends the process. docs/host.md describes every message.
"""

from __future__ import annotations

import base64
import io
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ...models.bundle import DEMO
from ...models.errors import ProviderError
from ...runtime.engine import hardware, providers
from ...runtime.images.hires import UPSCALERS
from ...runtime.images.safety_checker import Hiding
from ...runtime.metadata.record import tool
from ...runtime.provenance.marks import Marks, kept_in
from ...runtime.request import MAX_COUNT, MAX_SIDE, MAX_STEPS, shown, specs
from ...runtime.sampling.samplers import SAMPLERS
from ...runtime.sampling.schedules import SCHEDULES
from ...runtime.saving import ImageWriter
from .error_codes import CODES, Refusal, refusal_of
from .generation import ENDINGS, Drawn, Event, Output, Preview, Progress, generate, open_model, remove_stale_parts
from .host_messages import TYPES, Bye, Cancel, Close, Generate, Id, Info, Message, Open, checked, envelope
from .json_lines import MAX_LINE, Outbox, read_lines
from .json_requests import Folders, parent_of, request_of
from .local_worker import MAX_JOBS, Facts, Job, LocalWorker
from .resident_model import CACHE, ResidentModel, Setup, describe

PROTOCOL = 1
"""Raised when a host that speaks the older one would misunderstand. New fields and new messages do not raise it."""
_GRACE = 5.0
"""Seconds that a running model call has to stop when the process ends."""
_LAST_LINES = 2.0
"""Seconds for the last lines to be read."""


@dataclass(frozen=True)
class Settings:
    """What a host may reach."""

    data: Path | None = None
    """The only folder in which files are written; None writes none."""
    allowed: tuple[Path, ...] = ()
    """Further folders in which files named by requests are read."""
    models: tuple[Path, ...] = (DEMO,)
    """The models that `ready` describes; the first one is used until another is opened."""
    provider: str = "auto"
    device: int = 0
    memory: str = "auto"
    threads: int = 0
    flagged: Hiding = "black"
    marks: Marks = field(default_factory=Marks)


def run(settings: Settings, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Serve a host until it says bye, or until its end of `stdin` or `stdout` closes.

    `stdout` may belong to nothing else (`json_lines.claim_stdout`). Returns with all work stopped; call `os._exit` afterwards, since
    a thread may still wait for a reader that is gone.

    Raises:
        RequestError: a signature was asked for and cannot be made.
    """
    outbox = Outbox(stdout, broken=lambda: os._exit(1))
    host = _Host(settings, outbox)
    reason = "the input ended"
    outbox.send(host.ready())
    for line in read_lines(stdin):
        if host.answer(line):
            reason = "asked"
            break
    outbox.stop_waiting()
    host.worker.close(_GRACE)
    outbox.send({"type": "bye", "reason": reason})
    outbox.close(_LAST_LINES)


class _Host:
    """The state behind the messages."""

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        roots = (*((settings.data,) if settings.data else ()), *settings.allowed, *settings.models)
        self.settings = settings
        self.folders = Folders(tuple(root.resolve() for root in roots))
        self.outbox = outbox
        self.writer = ImageWriter(kept_in(settings.marks, settings.data))
        self.writer.check()
        self.model = ResidentModel(self._setup(settings.models[0]))
        self.worker = LocalWorker(self.model.cancel)
        self.jobs: dict[Id, Job] = {}
        if settings.data is not None:
            remove_stale_parts(settings.data)

    def ready(self) -> dict[str, Any]:
        """The first line: what this process can do, and what each model needs."""
        return {
            "type": "ready",
            "protocol": PROTOCOL,
            "version": tool().removeprefix("Diffusette "),
            "pid": os.getpid(),
            "requests": TYPES,
            "codes": list(CODES),
            "limits": {"line": MAX_LINE, "queue": MAX_JOBS, "side": MAX_SIDE, "steps": MAX_STEPS, "count": MAX_COUNT},
            "fields": list(specs()),
            "samplers": list(SAMPLERS),
            "schedules": list(SCHEDULES),
            "upscalers": list(UPSCALERS),
            "speeds": list(specs()["speed"][2].choices),
            "images": ["path", "base64"] if self.settings.data else ["base64"],
            "formats": list(ENDINGS),
            "providers": _providers(),
            "data": None if self.settings.data is None else str(self.settings.data),
            "machine": _machine(),
            "models": [describe(folder) for folder in self.settings.models],
        }

    def answer(self, line: bytes | None) -> bool:
        """Answer a line; whether it says bye."""
        name: Id | None = None
        try:
            if line is not None and not line.strip():
                return False
            name, given = envelope(line)
            message = checked(given)
            if isinstance(message, Bye):
                self.outbox.send({"id": name, "type": "done"})
                return True
            self._handle(message, len(line or b""))
        except Exception as error:  # noqa: BLE001  # every failure is an answer
            refusal = refusal_of(error)
            if refusal.code == "internal":
                traceback.print_exc()
            self._fail(name, refusal)
        return False

    def _handle(self, message: Message, cost: int) -> None:
        name = message.id
        match message:
            case Info():
                self.outbox.send({"id": name, "type": "done", **self._info(message)})
            case Cancel():
                job = self.jobs.get(message.target)
                if job is None or not self.worker.cancel(job):
                    raise Refusal("not_found", f"target: no request {shown(message.target)} is waiting or running", "target")
                self.outbox.send({"id": name, "type": "done"})
            case Open():
                setup = self._opened(message)
                self._submit(name, lambda job: open_model(self.model, setup, partial(self._seen, name), job, warm=message.warm), cost)
            case Generate():
                output = self._output(message)
                make = partial(request_of, message.request, self.folders)
                seen = partial(self._seen, name)
                self._submit(name, lambda job: generate(self.model, make, output, message.previews, seen, job), cost)
            case Close():
                self._submit(name, self._closed, cost)
            case Bye():
                pass

    def _submit(self, name: Id, work: Callable[[Job], Facts], cost: int) -> None:
        if name in self.jobs:
            raise Refusal("invalid_request", f"id: {shown(name)} is in use by a request that has not ended; use another", "id")
        job = Job(work, partial(self._ended, name), cost)

        def accepted(before: int) -> None:
            self.jobs[name] = job
            self.outbox.send({"id": name, "type": "accepted", "before": before})

        self.worker.submit(job, accepted)

    def _ended(self, name: Id, outcome: Facts | Refusal) -> None:
        self.jobs.pop(name, None)
        if isinstance(outcome, Refusal):
            self._fail(name, outcome)
        else:
            self.outbox.send({"id": name, "type": "done", **outcome})

    def _fail(self, name: Id | None, refusal: Refusal) -> None:
        self.outbox.send({"id": name, "type": "error", "code": refusal.code, "message": str(refusal), "field": refusal.field})

    def _seen(self, name: Id, event: Event) -> None:
        """Send an event of the request `name`. Progress and previews that were not read yet give way to newer ones."""
        match event:
            case Progress():
                self.outbox.send({"id": name, "type": "progress", **asdict(event)}, latest=("progress", name))
            case Preview():
                width, height = event.picture.size
                facts = {"image": event.image, "step": event.step, "width": width, "height": height, "format": "jpeg"}
                self.outbox.send({"id": name, "type": "preview", **facts, "base64": _jpeg(event)}, latest=("preview", name))
            case Drawn():
                self.outbox.send({"id": name, "type": "image", **_drawn(event)})

    def _info(self, message: Info) -> dict[str, Any]:
        size = (message.width or 0, message.height or 0)
        asked = None if message.model is None else self.folders.inside("model", message.model)
        folders = self.settings.models if asked is None else (asked,)
        return {
            "models": [describe(folder, *size) for folder in folders],
            "machine": _machine(),
            "resident": self.model.facts,
            "waiting": [name for name, job in list(self.jobs.items()) if self.worker.position(job) is not None],
        }

    def _setup(self, folder: Path) -> Setup:
        cache = None if self.settings.data is None else self.settings.data / CACHE
        given = self.settings
        return Setup(folder, given.provider, given.memory, given.threads, cache, flagged=given.flagged, device=given.device)

    def _opened(self, message: Open) -> Setup:
        folder = self.settings.models[0] if message.model is None else self.folders.inside("model", message.model)
        refiner = None if message.refiner is None else self.folders.inside("refiner", message.refiner)
        setup = self._setup(folder)
        setup = replace(setup, safety=message.safety, flagged=message.flagged or setup.flagged, refiner=refiner)
        device = setup.device if message.device is None else message.device
        return replace(setup, provider=message.provider or setup.provider, device=device, memory=message.memory or setup.memory)

    def _output(self, message: Generate) -> Output:
        folder = None if message.images == "base64" else self.settings.data
        if message.images == "path" and folder is None:
            raise Refusal("invalid_request", "images: there is no folder for files; start with --data FOLDER, or ask for base64", "images")
        parent = partial(parent_of, message.request, self.folders)
        return Output(message.format, folder, message.quality, message.metadata, self.writer, parent)

    def _closed(self, _job: Job) -> Facts:
        self.model.close()
        return {}


def _providers() -> list[str]:
    """The providers that can run here; none if ONNX Runtime is missing or damaged, which `open` then explains."""
    try:
        return [name for name, provider in providers.TABLE.items() if not providers.why_missing(provider)]
    except ProviderError:
        return []


def _machine() -> dict[str, Any]:
    memory = hardware.memory()
    return {
        "processor": hardware.processor(),
        "cores": hardware.cores(),
        "free_memory": memory and memory[0],
        "total_memory": memory and memory[1],
    }


def _jpeg(event: Preview) -> str:
    buffer = io.BytesIO()
    event.picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _drawn(event: Drawn) -> dict[str, Any]:
    width, height = event.picture.image.size
    facts = {"image": event.image, "seed": event.picture.seed, "width": width, "height": height, "flagged": event.picture.flagged}
    if event.path is not None:
        return {**facts, "bytes": len(event.data), "path": str(event.path)}
    return {**facts, "bytes": len(event.data), "base64": base64.b64encode(event.data).decode()}
