"""Refusals as HTTP answers, in the form that clients of each API read."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from ..jobs.records import Code, Failure, Refused

STATUS: dict[Code, int] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "timeout": 408,
    "cancelled": 409,
    "too_large": 413,
    "unsupported": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "model_error": 500,
    "internal": 500,
    "disk_error": 500,
    "out_of_memory": 503,
    "stopping": 503,
    "disk_full": 507,
}
_AGAIN = {"queue_full": "5", "rate_limited": "1", "stopping": "10", "out_of_memory": "10"}
"""Seconds after which trying again makes sense."""


def json_response(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`data`, which may hold structs, as JSON."""
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def status_of(refused: Refused, path: str) -> int:
    """The HTTP status of a refusal; A1111 says 422 where others say 400."""
    usual = STATUS[refused.code]
    return refused.status or (422 if path.startswith("/sdapi/") and refused.code == "invalid_request" else usual)


def body_of(refused: Refused, path: str) -> dict[str, Any]:
    """The body of a refusal in the form of the API that `path` belongs to."""
    if path.startswith("/sdapi/"):
        return {"error": refused.code, "detail": refused.message, "body": "", "errors": refused.message, "field": refused.field}
    if path.startswith("/v1/"):
        status = status_of(refused, path)
        kind = "invalid_request_error" if status < 500 else "server_error"
        if status == 401:
            kind = "authentication_error"
        return {"error": {"message": refused.message, "type": kind, "param": refused.field, "code": refused.code}}
    return {"error": Failure(refused.code, refused.message, refused.field)}


def response_to(refused: Refused, path: str) -> Response:
    """The answer to a request that is refused."""
    headers = {"retry-after": _AGAIN[refused.code]} if refused.code in _AGAIN else {}
    if refused.code == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    if refused.code in {"too_large", "timeout"}:
        headers["connection"] = "close"
    return json_response(body_of(refused, path), status_of(refused, path), headers)
