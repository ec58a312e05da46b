"""The gallery in our own API: search, files, thumbnails, trash, and metadata of any image."""

from __future__ import annotations

from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ..jobs.gallery import MEDIA
from ..jobs.records import Image, Refused
from . import metadata_in
from .errors import json_response
from .waiting import decoding, in_thread, service_of


async def images(request: Request) -> Response:
    """The gallery, newest first."""
    service, query = service_of(request), request.query_params
    limit = query.get("limit", "50")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:6]) <= 500):
        raise Refused("invalid_request", "limit: expected a number from 1 to 500", "limit")
    arguments = (query.get("q", "")[:1000], query.get("model", ""), query.get("before", ""), int(limit) + 1)
    found = cast("list[Image]", await in_thread(service.store.search, *arguments))
    return json_response({"images": found[: int(limit)], "more": len(found) > int(limit)})


async def image(request: Request) -> Response:
    """One image with its settings, and its metadata as read from the file."""
    service = service_of(request)
    stored = service.gallery.stored(request.path_params["id"])
    path = service.gallery.path(stored)
    metadata = await decoding(metadata_in.facts_of, path)
    facts = {**msgspec.to_builtins(stored.image), "settings": stored.settings, "metadata": metadata}
    return json_response({"image": facts})


async def image_file(request: Request) -> Response:
    """The image's file."""
    service = service_of(request)
    stored = service.gallery.stored(request.path_params["id"])
    path = service.gallery.path(stored)
    how = "attachment" if request.query_params.get("download") == "1" else "inline"
    name = f"diffusette-{stored.image.seed}-{stored.image.id[-6:]}{path.suffix}"
    headers = {"content-disposition": f'{how}; filename="{name}"', "cache-control": "private, max-age=86400"}
    return FileResponse(path, headers=headers, media_type=MEDIA[path.suffix])


async def thumbnail(request: Request) -> Response:
    """A small WebP of the image."""
    service = service_of(request)
    data = await in_thread(service.gallery.thumbnail, service.gallery.stored(request.path_params["id"]))
    return Response(data, headers={"cache-control": "private, max-age=86400"}, media_type="image/webp")


async def delete_image(request: Request) -> Response:
    """Move the image to the trash, for a week."""
    service = service_of(request)
    identifier = request.path_params["id"]
    service.gallery.delete([identifier])
    service.events.publish("gallery", {"deleted": [identifier], "restored": []})
    return json_response({"image": service.gallery.stored(identifier).image})


async def restore_image(request: Request) -> Response:
    """Take the image out of the trash."""
    service = service_of(request)
    restored = service.gallery.restore([request.path_params["id"]])
    service.events.publish("gallery", {"deleted": [], "restored": restored})
    return json_response({"image": restored[0]})


async def metadata(request: Request) -> Response:
    """The settings in an image file."""
    service = service_of(request)
    data = await request.body()
    return json_response(await decoding(metadata_in.settings_of, data, service.catalog))
