"""The application: routes and middleware."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..models.errors import DiffusetteError
from . import assets
from .api import a1111, identifiers, monitor, openai, openapi, v1
from .api.errors import response_to
from .jobs.records import Refused
from .jobs.service import Service
from .log import say
from .security import Guard, Policy


def build(service: Service, policy: Policy, *, access_log: bool) -> Starlette:
    """The ASGI application; it starts and closes `service`."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    identifiers.register()
    log = [Middleware(AccessLog, whole=service.log_prompts)] if access_log else []
    app = Starlette(
        routes=[*v1.routes(), *openapi.routes(), *a1111.routes(), *openai.routes(), *monitor.routes(), *assets.routes()],
        middleware=[*log, Middleware(Guard, policy=policy)],
        exception_handlers={Refused: _refused, DiffusetteError: _refused, HTTPException: _http},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _refused(request: Request, error: Exception) -> Response:
    service: Service = request.app.state.service
    return response_to(service.catalog.refusal_of(error), request.url.path)


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = {404: "there is nothing at this address", 405: "this address takes another method"}
    refused = Refused("not_found" if status in said else "invalid_request", said.get(status, "the request was refused"), None, status)
    return response_to(refused, request.url.path)


class AccessLog:
    """One line on stderr for every request: method, path, status, time. Queries, which may hold prompts, only if `whole`."""

    def __init__(self, app: ASGIApp, *, whole: bool = False) -> None:
        self.app = app
        self.whole = whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and write the line when the answer is complete."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 0, time.perf_counter()

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            path = scope["path"]
            if self.whole and scope["query_string"] and "token=" not in (query := scope["query_string"].decode("latin-1")):
                path += f"?{query}"
            shown = ascii(path[:300])[1:-1]  # control characters, which a terminal would obey, as escapes
            say(f"{scope['method']} {shown} {status} {(time.perf_counter() - started) * 1000:.0f} ms")
