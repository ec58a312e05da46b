"""What monitors ask: alive, ready, and numbers in Prometheus' format."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ... import __version__
from .waiting import service_of


async def healthz(_request: Request) -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """A model is open."""
    service = service_of(request)
    ready = service.worker.resident is not None and not service.stopping.is_set()
    return PlainTextResponse("ready\n" if ready else "not ready: no model is open\n", 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Counters and gauges; without prompts, without names of clients."""
    service = service_of(request)
    worker, queue = service.worker, service.queue
    running, waiting = queue.load()
    numbers: list[tuple[str, str, str, float]] = [
        ("diffusette_up_seconds", "gauge", "Seconds since the server started.", time.time() - service.started),
        ("diffusette_queue_jobs", "gauge", "Jobs that wait.", waiting),
        ("diffusette_running_jobs", "gauge", "Jobs that run: 0 or 1.", running is not None),
        ("diffusette_model_open", "gauge", "Whether a model is open.", worker.resident is not None),
        ("diffusette_event_streams", "gauge", "Open event streams.", service.events.listeners),
        ("diffusette_images_total", "counter", "Images made since the server started.", worker.images),
        ("diffusette_steps_total", "counter", "Denoising steps since the server started.", worker.steps),
        ("diffusette_busy_seconds_total", "counter", "Seconds in which a job ran.", worker.busy_seconds),
    ]
    lines = [f'# TYPE diffusette_info gauge\ndiffusette_info{{version="{__version__}"}} 1']
    lines += [f"# HELP {name} {said}\n# TYPE {name} {kind}\n{name} {float(value):g}" for name, kind, said, value in numbers]
    lines.append("# HELP diffusette_jobs_total Jobs that ended.\n# TYPE diffusette_jobs_total counter")
    lines += [f'diffusette_jobs_total{{status="{status}"}} {count}' for status, count in queue.counts.items()]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def routes() -> list[Route]:
    """The routes for monitors."""
    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
