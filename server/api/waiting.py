"""What APIs share that answer when the job is done: waiting, and cancelling when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from ..jobs.records import ENDED, Job, Refused
from ..jobs.service import Service

MAX_MARKS = 500_000
"""Commas and opening brackets of a JSON body. Images are base64, which has neither."""


def service_of(request: Request) -> Service:
    """The service of the application."""
    return cast("Service", request.app.state.service)


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body; an empty body is an empty object.

    Raises:
        Refused: not a JSON object, or one of too many values, which would take a hundred times the memory of its text.
    """
    body = await request.body()
    if not body:
        return {}
    if len(body) > MAX_MARKS and await to_thread.run_sync(_marks, body) > MAX_MARKS:
        raise Refused("too_large", f"the body has more than {MAX_MARKS:,} commas and brackets; send a smaller request")
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise Refused("invalid_request", f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise Refused("invalid_request", "the body: expected a JSON object")
    return cast("dict[str, Any]", found)


def _marks(body: bytes) -> int:
    """Commas and opening brackets: no JSON has more values."""
    return sum(body.count(mark) for mark in (b",", b"[", b"{"))


async def ended(request: Request, service: Service, job: Job) -> Job:
    """The job when it has ended. It is cancelled if the client goes away.

    Raises:
        Refused: the job failed, somebody cancelled it before its first image, or the server stops.
    """
    gone = asyncio.create_task(disconnected(request))
    stopping = asyncio.create_task(service.stopping.wait())
    try:
        with service.queue.watchers.watch(job.id) as listener:
            while (found := service.queue.job(job.id)).status not in ENDED:
                woken = asyncio.create_task(listener.wait())
                await asyncio.wait({woken, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if gone.done():
                    service.queue.cancel(job.id)
                    raise Refused("cancelled", "the client went away")
                if stopping.done():
                    raise Refused("stopping", "the server is stopping: try again when it is back")
    finally:
        gone.cancel()
        stopping.cancel()
    return outcome(found)


def outcome(job: Job) -> Job:
    """A job that ended well, or that was cancelled after its first image.

    Raises:
        Refused: it failed, or nothing came of it.
    """
    if job.error is not None:
        raise Refused(job.error.code, job.error.message, job.error.field)
    if job.status == "cancelled" and not job.images:
        raise Refused("cancelled", "the job was cancelled")
    return job


async def disconnected(request: Request) -> None:
    """Return when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


_AT_ONCE = CapacityLimiter(4)
"""Blocking calls at a time."""
_DECODING = CapacityLimiter(2)
"""Calls at a time that decode an image from outside: each may take a gigabyte."""


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run blocking work beside the event loop, a few calls at a time."""
    return await to_thread.run_sync(partial(function, *arguments), limiter=_AT_ONCE)


async def decoding(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run work that decodes an image of a request beside the event loop, two calls at a time over all APIs."""
    return await to_thread.run_sync(partial(function, *arguments), limiter=_DECODING)
