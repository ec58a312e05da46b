"""Our own API, /api/v1: jobs, the queue, events, the gallery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, NamedTuple, cast

import msgspec
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__
from ..jobs.records import Job, Options, Refused
from ..jobs.requests import IMAGES, Asked
from ..jobs.service import Service
from . import v1_images
from .errors import json_response
from .images_in import given
from .streams import EventStream
from .waiting import decoding, in_thread, json_object, service_of

PREFIX = "/api/v1"
ENDED_SHOWN = 20
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Operation(NamedTuple):
    """One operation: what the router and the API's description are both made from."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    body: str = ""
    """Name of the schema of the body; empty if there is none."""
    answer: str = ""
    """What comes back, in words."""


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for a job."""

    request: dict[str, Any]
    model: str | None = None
    client: str = ""
    live: bool = False
    front: bool = False
    format: str = "png"


async def state(request: Request) -> Response:
    """Everything that a page needs to begin."""
    service = service_of(request)
    number = service.events.number  # before the rest, so that nothing between is missed
    return json_response(
        {
            "version": __version__,
            "event": number,
            "models": _models(service),
            "resident": service.worker.resident,
            "jobs": _jobs(service),
            "limits": service.limits.public(),
            "settings": service.store.settings("page"),
        }
    )


def _models(service: Service) -> list[Any]:
    return [offer.fact(service.worker.resident) for offer in service.catalog.offers.values()]


def _jobs(service: Service) -> list[Job]:
    current = service.queue.current()
    known = {job.id for job in current}
    return current + [job for job in service.store.ended(ENDED_SHOWN) if job.id not in known]


async def models(request: Request) -> Response:
    """The models."""
    return json_response({"models": _models(service_of(request))})


async def model(request: Request) -> Response:
    """One model with its choices."""
    service = service_of(request)
    offer = service.catalog.find(request.path_params["id"])
    return json_response(offer.details(service.worker.resident, service.catalog.loras(), service.catalog.embeddings()))


async def open_model(request: Request) -> Response:
    """Open a model, by way of the queue."""
    service = service_of(request)
    asked = await json_object(request)
    offer = service.catalog.find(request.path_params["id"])
    return json_response({"job": service.open_model(offer, _text(asked, "client"))}, 202)


async def create_job(request: Request) -> Response:
    """Put a request into the queue."""
    service = service_of(request)
    body = await json_object(request)
    try:
        wanted = msgspec.convert(body, JobRequest)
    except msgspec.ValidationError as error:
        raise Refused("invalid_request", f"{error}; expected request, and model, client, live, front or format") from error
    kind = FORMATS.get(wanted.format)
    if kind is None:
        raise Refused("invalid_request", f"format: {wanted.format[:20]!r}, expected png, jpeg or webp", "format")
    options = Options(seed=0, variation_seed=0, format=cast("Any", kind))

    def submit() -> Job:
        asked = asked_of(wanted.request, service)
        return service.submit(asked, wanted.model, options, client=wanted.client[:100], live=wanted.live, front=wanted.front)

    run = decoding if any(wanted.request.get(name) is not None for name in IMAGES) else in_thread
    return json_response({"job": await run(submit)}, 202)


def asked_of(fields: Mapping[str, Any], service: Service) -> Asked:
    """The fields of a JSON request, with images taken out of them.

    Raises:
        Refused: an image that is not data.
    """
    images: dict[str, bytes] = {}
    shown: dict[str, Any] = {}
    for name in IMAGES:
        if fields.get(name) is not None:
            images[name], shown[name] = given(fields[name], name, service.gallery)
    return Asked({name: value for name, value in fields.items() if name not in IMAGES}, images, shown)


async def jobs(request: Request) -> Response:
    """The running job, those that wait, and the last that ended."""
    return json_response({"jobs": _jobs(service_of(request))})


async def job(request: Request) -> Response:
    """One job."""
    return json_response({"job": service_of(request).queue.job(request.path_params["id"])})


async def cancel_job(request: Request) -> Response:
    """Cancel a job, or take it out of the queue."""
    return json_response({"job": service_of(request).queue.cancel(request.path_params["id"])})


async def move_job(request: Request) -> Response:
    """Move a job in the queue."""
    body = await json_object(request)
    before = body.get("before")
    if before is not None and not isinstance(before, str):
        raise Refused("invalid_request", "before: expected the id of a job, or null for the end", "before")
    return json_response({"jobs": service_of(request).queue.move(request.path_params["id"], before)})


async def job_now(request: Request) -> Response:
    """Cancel the running job and run this one next."""
    return json_response({"job": service_of(request).queue.now(request.path_params["id"])})


async def clear_queue(request: Request) -> Response:
    """Empty the queue; the running job goes on."""
    service_of(request).queue.clear()
    return json_response({"jobs": []})


async def events(request: Request) -> Response:
    """Everything that happens, as server-sent events."""
    service = service_of(request)
    asked = request.headers.get("last-event-id") or request.query_params.get("after") or ""
    if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 19):
        raise Refused("invalid_request", "after: expected the number of an event", "after")
    if not service.streams.acquire(blocking=False):
        raise Refused("rate_limited", f"{service.limits.streams} event streams are open already: close a tab", status=503)
    return EventStream(_stream(service, int(asked) if asked else service.events.number), service.streams.release)


async def _stream(service: Service, after: int) -> AsyncIterator[ServerSentEvent]:
    with service.events.listen() as listener:
        while not service.stopping.is_set():
            found = service.events.after(after)
            if found is None:
                after = service.events.number
                yield ServerSentEvent("{}", event="reset", id=str(after))
                continue
            for event in found:
                after = event.number
                yield ServerSentEvent(event.data, event=event.kind, id=str(event.number))
            await listener.wait()


async def tokens(request: Request) -> Response:
    """How prompts fill the text encoder."""
    service = service_of(request)
    body = await json_object(request)
    offer = service.catalog.find(_text(body, "model") or None)
    texts = {name: _text(body, name)[: service.limits.prompt] for name in ("prompt", "negative")}
    return json_response(await in_thread(lambda: {name: offer.count(text) for name, text in texts.items()}))


async def settings(request: Request) -> Response:
    """The page's settings."""
    return json_response({"settings": service_of(request).store.settings("page")})


async def put_settings(request: Request) -> Response:
    """Replace the page's settings."""
    service = service_of(request)
    if len(await request.body()) > service.limits.settings:
        raise Refused("too_large", f"settings: expected at most {service.limits.settings:,} bytes", "settings")
    body = await json_object(request)
    wanted: object = body.get("settings")
    if not isinstance(wanted, dict) or body.keys() != {"settings"}:
        raise Refused("invalid_request", 'settings: expected {"settings": {name: value}}', "settings")
    service.store.put_settings("page", cast("dict[str, Any]", wanted))
    return json_response({"settings": cast("object", wanted)})


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise Refused("invalid_request", f"{name}: expected text", name)
    return value


OPERATIONS = (
    Operation("GET", "/state", state, "Everything that a page needs to begin", answer="version, event, models, jobs, limits, settings"),
    Operation("GET", "/models", models, "The models", answer="models"),
    Operation("GET", "/models/{id}", model, "A model with its samplers, sizes, LoRAs and other choices", answer="ModelDetails"),
    Operation("POST", "/models/{id}/open", open_model, "Open a model, by way of the queue", answer="job"),
    Operation("POST", "/jobs", create_job, "Put a request into the queue", "JobRequest", "job"),
    Operation("GET", "/jobs", jobs, "The running job, those that wait, the last that ended", answer="jobs"),
    Operation("GET", "/jobs/{id}", job, "A job", answer="job"),
    Operation("DELETE", "/jobs/{id}", cancel_job, "Cancel a running job, or take one out of the queue", answer="job"),
    Operation("POST", "/jobs/{id}/move", move_job, "Move a job before another one, or to the end", "Move", "jobs"),
    Operation("POST", "/jobs/{id}/now", job_now, "Cancel the running job and run this one next", answer="job"),
    Operation("POST", "/queue/clear", clear_queue, "Empty the queue", answer="jobs"),
    Operation("GET", "/events", events, "Server-sent events; Last-Event-ID or ?after=N replays", answer="text/event-stream"),
    Operation("GET", "/images", v1_images.images, "The gallery: ?q= words, ?before= id, ?limit=, ?model=", answer="images, more"),
    Operation("GET", "/images/{id}", v1_images.image, "An image with settings and metadata", answer="image"),
    Operation(
        "GET",
        "/images/{id}/file",
        v1_images.image_file,
        "The image's file; ?download=1 saves it",
        answer="image/png, image/jpeg or image/webp",
    ),
    Operation("GET", "/images/{id}/thumbnail", v1_images.thumbnail, "At most 256 pixels a side", answer="image/webp"),
    Operation("DELETE", "/images/{id}", v1_images.delete_image, "Move an image to the trash, for a week", answer="image"),
    Operation("POST", "/images/{id}/restore", v1_images.restore_image, "Take an image out of the trash", answer="image"),
    Operation(
        "POST",
        "/metadata",
        v1_images.metadata,
        "The settings and marks in an image file",
        "image",
        "tool, settings, text, unapplied, model, marks",
    ),
    Operation("POST", "/tokens", tokens, "Count the tokens of prompts", "Tokens", "prompt, negative"),
    Operation("GET", "/settings", settings, "The page's settings", answer="settings"),
    Operation("PUT", "/settings", put_settings, "Replace the page's settings", "Settings", "settings"),
)


def routes() -> list[Route]:
    """The routes of this API."""
    found: list[Route] = []
    for operation in OPERATIONS:
        path = operation.path
        if "{id}" in path and "/models/" not in path:
            path = path.replace("{id}", "{id:key}")
        found.append(Route(PREFIX + path, operation.endpoint, methods=[operation.method]))
    return found
