"""Images in requests: data, never an address or a path."""

from __future__ import annotations

import base64
import binascii
import re
from typing import cast

from ..jobs.gallery import Gallery
from ..jobs.records import Refused

_DATA = re.compile(r"data:([\w.+/-]{0,40});base64,", re.IGNORECASE)
_TYPES = {"image/png", "image/jpeg", "image/jpg", "image/webp", "application/octet-stream", ""}


def bytes_of(value: object, field: str) -> bytes:
    """The bytes of "data:image/png;base64,…" or of bare base64.

    Raises:
        Refused: anything else, such as a URL or a path; nothing is fetched or opened.
    """
    if not isinstance(value, str) or not value:
        raise Refused("invalid_request", f"{field}: expected an image as base64 or as a data: URL", field, 400)
    head = _DATA.match(value[:100])
    if head is not None and head[1].lower() not in _TYPES:
        raise Refused("invalid_request", f"{field}: {head[1]} is not read; send PNG, JPEG or WebP", field, 400)
    try:
        data = base64.b64decode(value[head.end() :] if head else value, validate=True)
    except (binascii.Error, ValueError) as error:
        said = f"{field}: expected an image as base64 or as a data: URL; addresses and paths are not followed"
        raise Refused("invalid_request", said, field, 400) from error
    if len(data) < 16:
        raise Refused("invalid_request", f"{field}: {len(data)} bytes are not an image; send PNG, JPEG or WebP as base64", field, 400)
    return data


def given(value: object, field: str, gallery: Gallery) -> tuple[bytes, object]:
    """The bytes of an image and what a job shows in its place: {"image": id} names one of the gallery, anything else is data.

    Raises:
        Refused: neither.
    """
    if isinstance(value, dict):
        named = cast("dict[str, object]", value)
        identifier = named.get("image") if len(named) == 1 else None
        if not isinstance(identifier, str):
            raise Refused("invalid_request", f'{field}: expected base64, a data: URL, or {{"image": id}}', field, 400)
        return gallery.path(gallery.stored(identifier)).read_bytes(), {"image": identifier}
    return bytes_of(value, field), True
