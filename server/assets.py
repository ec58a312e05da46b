"""The page: exactly the files of the folder `page`, by name, with fixed content types."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .jobs.records import Refused

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}
"""Files of other kinds are not served."""


def routes() -> list[Route]:
    """Return the routes `/` and `/assets/…`, for the files that are there when the server starts."""
    files = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path.suffix in TYPES}
    tags = {name: f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}"' for name, path in files.items()}

    def answer(request: Request, name: str) -> Response:
        path = files.get(name)
        if path is None:
            raise Refused("not_found", "no such file of the page")
        headers = {"etag": tags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(path.read_bytes(), headers=headers, media_type=TYPES[path.suffix])

    async def page(request: Request) -> Response:
        return answer(request, INDEX)

    async def asset(request: Request) -> Response:
        return answer(request, request.path_params["name"])

    return [Route("/", page, methods=["GET"]), Route("/assets/{name:path}", asset, methods=["GET"])]
