"""The measured process. It opens a bundle, then generates once per line on stdin and answers with one JSON line.

A line is empty, or holds a number of steps that replaces the job's.

A process of its own for each combination of settings: the start is a real one, and no memory of another combination is left.
Run as `python -m diffusette.benchmarks.measure.worker JOB`, with a `Job` as JSON.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import os  # noqa: E402  # the clock starts before anything is imported
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402

import msgspec  # noqa: E402

from ...models.errors import DiffusetteError  # noqa: E402


class Job(msgspec.Struct, frozen=True):
    """What to open and generate; None is the model's default. The second half is for other engines (`rivals`)."""

    folder: str | None
    prompt: str
    provider: str = "auto"
    memory: str = "auto"
    threads: int = 0
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    speed: str = "exact"
    seed: int = 0
    count: int = 1
    picture: str = ""
    """Path of the first image, and of later ones with another number of steps; empty keeps none."""
    engine: str = "diffusette"
    variant: str = ""
    """Precision of the engine."""
    prepared: str = ""
    """Folder of the weights in the engine's own format."""
    latents: str = ""
    """File of the noise that the image starts from."""
    tokens: tuple[tuple[int, ...], ...] = ()
    """Ids of no prompt, and of the prompt."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The bundle is open. Times are in seconds."""

    import_latency: float
    """From the first line of this process to the imported runtime."""
    load_latency: float
    """Of `pipeline.load`; graphs open when they first run."""
    ready_at: float
    """On `time.perf_counter`, which all processes of a machine share."""
    model_name: str
    precision: str
    target: str
    provider: str
    """The one that really runs."""
    memory: str
    threads: int
    family: str = ""


class Drawn(msgspec.Struct, frozen=True, tag=True):
    """The request was generated."""

    latency: float
    calls: tuple[tuple[str, float, float], ...]
    """Component, start and end of each run of a graph, on `time.perf_counter`."""
    width: int
    height: int
    steps: int
    guidance: float
    sampler: str
    notes: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be done; the process ends."""

    message: str


Event = Opened | Drawn | Failed


def serve(job: Job, tell: Callable[[Event], None]) -> None:
    """Open the bundle of `job` and draw once for each line on stdin, until it is closed."""
    from ...runtime import pipeline
    from ...runtime.engine import hardware, tuned_settings
    from ...runtime.request import Request
    from .session_recorder import recorded

    imported = time.perf_counter()
    drawer = pipeline.load(job.folder, job.provider, job.memory, threads=job.threads)
    opened = time.perf_counter()
    manifest = drawer.manifest
    unet = manifest.components.get("unet")
    drawer, recorder = recorded(drawer)
    tell(
        Opened(
            import_latency=imported - STARTED,
            load_latency=opened - imported,
            ready_at=opened,
            model_name=manifest.source.name,
            precision=unet.precision if unet else "",
            target=manifest.target,
            provider=drawer.components.provider.name,
            memory=drawer.components.plan,
            threads=job.threads or tuned_settings.followed(manifest, job.provider, 0)[1] or hardware.cores(),
            family=manifest.family,
        )
    )
    request = Request(
        job.prompt,
        width=job.width,
        height=job.height,
        steps=job.steps,
        guidance=job.guidance,
        sampler=job.sampler,
        speed=job.speed,
        seed=job.seed,
        count=job.count,
    )
    for line in sys.stdin:
        recorder.calls.clear()
        result = drawer.generate(replace(request, steps=int(line) if line.strip() else job.steps))
        record = result.metadata[0]
        calls = tuple(recorder.calls)
        if job.picture and (line.strip() or not os.path.exists(job.picture)):  # noqa: PTH110  # pathlib would be imported inside the measured start
            result.images[0].save(job.picture)
        tell(
            Drawn(result.timings["total"], calls, record.width, record.height, record.steps, record.guidance, record.sampler, result.notes)
        )


def main() -> None:
    """Speak JSON lines on what was stdout; whatever a library prints goes to stderr instead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends this process when it is ready to
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def tell(event: Event) -> None:
            out.write(msgspec.json.encode(event) + b"\n")

        try:
            serve(msgspec.json.decode(sys.argv[1], type=Job), tell)
        except DiffusetteError as error:
            tell(Failed(str(error)))
        except MemoryError:
            tell(Failed("not enough memory: measure smaller images, or --memory streamed"))


if __name__ == "__main__":
    main()
