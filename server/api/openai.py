"""OpenAI's image API, /v1: generations, edits, variations, models; streams with partial images."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
from sse_starlette import ServerSentEvent
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..jobs.models import Offer
from ..jobs.records import ENDED, Job, Refused
from ..jobs.service import Service
from .errors import body_of, json_response
from .openai_fields import Kind, Translated, translate
from .streams import EventStream
from .waiting import decoding, ended, in_thread, json_object, outcome, service_of

PREFIX = "/v1"
MAX_FILES = 17
"""Sixteen images and a mask."""
_EVENTS: dict[Kind, str] = {"generation": "image_generation", "edit": "image_edit", "variation": "image_edit"}
_PATCH = 16
"""Pixels of the side of a square that counts as a token of an image, for `usage`."""


async def create(request: Request, kind: Kind) -> Response:
    """Generate, and answer with the images or a stream of events."""
    service = service_of(request)
    body, images = (await json_object(request), dict[str, bytes]()) if kind == "generation" else await _form(request)

    def submit() -> tuple[Translated, Job]:
        wanted = translate(body, kind, images, service.catalog)
        return wanted, service.submit(wanted.asked, wanted.model, wanted.options, client=_client(request, body.get("user")))

    wanted, job = await (decoding if images else in_thread)(submit)
    if wanted.stream:
        return EventStream(_stream(request, service, job, wanted, kind))
    job = await ended(request, service, job)
    return json_response(await in_thread(_answer, service, job, wanted, str(request.base_url)))


def _client(request: Request, user: object) -> str:
    """Whose turn it is: the user that the client names, or its address and program."""
    host = request.client.host if request.client else ""
    return f"openai {host} {str(user)[:60] if user else request.headers.get('user-agent', '')[:60]}"


async def _form(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The fields and the files of a form.

    Raises:
        Refused: not a form, several images, or none.
    """
    service = service_of(request)
    try:
        async with request.form(max_files=MAX_FILES, max_fields=100, max_part_size=service.limits.prompt * 4) as form:
            files = [(name, await value.read()) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            fields = {name: _plain(name, value) for name, value in form.multi_items() if isinstance(value, str)}
    except (MultiPartException, HTTPException) as error:
        said = error.message if isinstance(error, MultiPartException) else error.detail
        raise Refused("invalid_request", f"the body is not a form: {said}") from error
    sources = [data for name, data in files if name in {"image", "image[]"}]
    if len(sources) != 1:
        said = "image: missing, expected a file" if not sources else "image: one image at a time; send one request for each"
        raise Refused("invalid_request", said, "image")
    masks = [data for name, data in files if name == "mask"]
    return fields, {"init": sources[0], **({"mask": masks[0]} if masks else {})}


_NUMBERS = {"n", "steps", "seed", "partial_images", "output_compression", "guidance", "guidance_scale", "cfg_scale", "strength"}


def _plain(name: str, value: str) -> object:
    """A field of a form as JSON would have it."""
    if name == "stream":
        return value.lower() == "true"
    if name not in _NUMBERS:
        return value
    try:
        return msgspec.json.decode(value, type=int | float)
    except msgspec.MsgspecError as error:
        raise Refused("invalid_request", f"{name}: {value[:40]!r}, expected a number", name) from error


def _answer(service: Service, job: Job, wanted: Translated, base: str) -> dict[str, Any]:
    data = [{"url": base.rstrip("/") + image.url} if wanted.url else {"b64_json": _b64(service, image.id)} for image in outcome(job).images]
    return {"created": int(job.created), "data": data, **_facts(service, job, wanted), "diffusette": _extras(job, wanted)}


def _facts(service: Service, job: Job, wanted: Translated) -> dict[str, Any]:
    """What answers and events have in common."""
    decided = job.resolved or {}
    return {
        "background": "opaque",
        "output_format": wanted.format,
        "quality": wanted.quality,
        "size": f"{decided['width']}x{decided['height']}" if decided else wanted.size,
        "usage": _usage(service, job),
    }


def _extras(job: Job, wanted: Translated) -> dict[str, Any]:
    """Beyond OpenAI's answer: what reproduces the images, and what had no effect."""
    return {"job": job.id, "seeds": [image.seed for image in job.images], "ignored": list(wanted.ignored), "notes": list(job.notes)}


def _usage(service: Service, job: Job) -> dict[str, Any]:
    """Tokens of the text, and squares of 16 × 16 pixels of the images."""
    text = service.catalog.find(job.model).count(job.prompt).tokens
    source = sum(image.width * image.height // _PATCH**2 for image in job.images[:1]) if job.request.get("init") else 0
    output = sum(image.width * image.height // _PATCH**2 for image in job.images)
    return {
        "input_tokens": text + source,
        "input_tokens_details": {"text_tokens": text, "image_tokens": source},
        "output_tokens": output,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        "total_tokens": text + source + output,
    }


def _b64(service: Service, image: str) -> str:
    return base64.b64encode(service.gallery.path(service.gallery.stored(image)).read_bytes()).decode()


async def _stream(request: Request, service: Service, job: Job, wanted: Translated, kind: Kind) -> AsyncIterator[ServerSentEvent]:
    """Partial images as they come, then each image whole. The job is cancelled if the client goes away."""
    name, partials, images = _EVENTS[kind], 0, 0
    try:
        with service.queue.watchers.watch(job.id) as listener:
            while True:
                found = service.queue.job(job.id)
                entry = service.queue.running
                fresh = entry.partials[partials:] if entry is not None and entry.job.id == job.id else []
                for _, number, data in fresh:
                    partials += 1
                    facts = {**_facts(service, found, wanted), "b64_json": base64.b64encode(data).decode(), "partial_image_index": number}
                    del facts["usage"]
                    yield _event(f"{name}.partial_image", {**facts, "created_at": int(job.created)})
                for image in found.images[images:]:
                    images += 1
                    facts = {**_facts(service, found, wanted), "b64_json": await in_thread(_b64, service, image.id)}
                    yield _event(f"{name}.completed", {**facts, "created_at": int(job.created), "diffusette": _extras(found, wanted)})
                if found.status in ENDED:
                    outcome(found)
                    return
                await _woken(listener.wait(), service)
    except Refused as refused:
        yield ServerSentEvent(msgspec.json.encode({"type": "error", **body_of(refused, request.url.path)}).decode(), event="error")
    finally:
        service.queue.cancel(job.id)  # ended jobs stay as they are


async def _woken(waiting: Any, service: Service) -> None:
    tasks = {asyncio.ensure_future(waiting), asyncio.ensure_future(service.stopping.wait())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if service.stopping.is_set():
        raise Refused("stopping", "the server is stopping: try again when it is back")


def _event(name: str, facts: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(msgspec.json.encode({"type": name, **facts}).decode(), event=name)


def _model(service: Service, offer: Offer) -> dict[str, Any]:
    return {"id": offer.id, "object": "model", "created": int(service.started), "owned_by": "diffusette"}


async def models(request: Request) -> Response:
    """The models."""
    service = service_of(request)
    return json_response({"object": "list", "data": [_model(service, offer) for offer in service.catalog.offers.values()]})


async def model(request: Request) -> Response:
    """One model."""
    service = service_of(request)
    return json_response(_model(service, service.catalog.find(request.path_params["id"])))


def routes() -> list[Route]:
    """The routes of this API."""
    return [
        Route(f"{PREFIX}/images/generations", partial(create, kind="generation"), methods=["POST"]),
        Route(f"{PREFIX}/images/edits", partial(create, kind="edit"), methods=["POST"]),
        Route(f"{PREFIX}/images/variations", partial(create, kind="variation"), methods=["POST"]),
        Route(f"{PREFIX}/models", models, methods=["GET"]),
        Route(f"{PREFIX}/models/{{id}}", model, methods=["GET"]),
    ]
