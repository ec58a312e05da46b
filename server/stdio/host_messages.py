"""The messages that a host sends: their fields, and what is said about lines that are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from ...runtime.images.safety_checker import Hiding
from ...runtime.request import MAX_SIDE, MAX_STEPS, shown
from .error_codes import Refusal
from .json_lines import MAX_LINE

MAX_ID = 128
"""Characters."""

Id = str | int
Size = Annotated[int, Meta(ge=8, le=MAX_SIDE)]


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag=str.lower):
    id: Id


class Info(_Message):
    """Asks for the state, or for facts about a model."""

    model: str | None = None
    width: Size | None = None
    height: Size | None = None


class Open(_Message):
    """Chooses a model and opens it."""

    model: str | None = None
    provider: str | None = None
    device: Annotated[int, Meta(ge=0)] | None = None
    memory: str | None = None
    safety: bool = True
    flagged: Hiding | None = None
    refiner: str | None = None
    warm: bool = False


class Generate(_Message):
    """Generates images."""

    request: dict[str, Any]
    images: Literal["path", "base64"] | None = None
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: Annotated[int, Meta(ge=1, le=100)] = 95
    metadata: bool = True
    previews: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0


class Cancel(_Message):
    """Stops the request with the id `target`."""

    target: Id


class Close(_Message):
    """Frees the memory of the model."""


class Bye(_Message):
    """Ends the process."""


Message = Info | Open | Generate | Cancel | Close | Bye
TYPES = [kind.__name__.lower() for kind in (Info, Open, Generate, Cancel, Close, Bye)]


def envelope(line: bytes | None) -> tuple[Id, dict[str, Any]]:
    """The id and the object of a line; None is a line that was too long.

    Raises:
        Refusal: not JSON, no object, or no usable id.
    """
    if line is None:
        raise Refusal("too_large", f"a line of more than {MAX_LINE:,} bytes was skipped; pass large images by path")
    try:
        given = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise Refusal("malformed", f"not JSON: {error}; expected one object a line") from error
    if not isinstance(given, dict):
        raise Refusal("malformed", f"{shown(given)}: expected an object, such as {{'id': 1, 'type': 'info'}}")
    found = cast("dict[str, Any]", given)
    name = found.get("id")
    text = isinstance(name, str) and 0 < len(name) <= MAX_ID
    if not text and not (isinstance(name, int) and not isinstance(name, bool) and abs(name) < 1 << 53):
        raise Refusal("malformed", f"id: {shown(name)}, expected text of 1 to {MAX_ID} characters or a whole number", "id")
    return cast("Id", name), found


def checked(given: Mapping[str, Any]) -> Message:
    """The message in an object.

    Raises:
        Refusal: an unknown type, or a field that is unknown or has the wrong type.
    """
    if given.get("type") not in TYPES:
        raise Refusal("malformed", f"type: {shown(given.get('type'))}, expected one of {', '.join(TYPES)}", "type")
    try:
        return msgspec.convert(given, type=Message)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        field = place.strip("`$.").partition("[")[0] or None
        raise Refusal("invalid_request", f"{field}: {text}" if field else text, field) from error
