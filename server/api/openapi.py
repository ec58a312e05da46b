"""The description of our own API: OpenAPI 3.1 as JSON, and a page to read it, both made from the table of operations."""

from __future__ import annotations

import html
import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ... import __version__
from ...runtime.request import specs
from ..jobs.models import Model
from ..jobs.records import Failure, Image, Job
from ..jobs.requests import NAMES
from . import v1
from .errors import json_response

_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
_IMAGE = {
    "oneOf": [
        {"type": "string", "description": "base64, or data:image/png;base64,…"},
        {"type": "object", "properties": {"image": {"type": "string", "description": "id of an image in the gallery"}}},
    ]
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "init": _IMAGE,
    "mask": _IMAGE,
    "loras": {
        "type": "array",
        "items": {"type": "object", "properties": {"name": {"type": "string"}, "weight": {"type": "number", "default": 1.0}}},
    },
    "embeddings": {"type": "array", "items": {"type": "string"}},
    "sampler_options": {"type": "object"},
}


def _request_schema() -> dict[str, Any]:
    """The fields of a request, as `Request` declares them."""
    properties: dict[str, Any] = {}
    for name, (annotation, _, spec) in specs().items():
        if name not in NAMES:
            continue
        kind = annotation.removesuffix(" | None")
        schema: dict[str, Any] = dict(_SPECIAL.get(name, {}))
        if not schema and kind.startswith(("tuple", "Sequence")):
            schema = {"type": "array", "items": {"type": "integer" if "int" in kind else "number"}}
        schema = schema or {"type": _TYPES.get(kind, "string")}
        if spec.low is not None and schema["type"] != "array":
            schema |= {"minimum": spec.low, "maximum": spec.high}
        if spec.choices:
            schema["enum"] = list(spec.choices)
        properties[name] = {**schema, "description": spec.description}
    return {"type": "object", "required": ["prompt"], "properties": properties, "additionalProperties": False}


def document() -> dict[str, Any]:
    """The whole description."""
    _, schemas = msgspec.json.schema_components([Job, Image, Model, Failure], ref_template="#/components/schemas/{name}")
    text = {"type": "string"}
    schemas |= {
        "Request": _request_schema(),
        "JobRequest": {
            "type": "object",
            "required": ["request"],
            "properties": {
                "request": {"$ref": "#/components/schemas/Request"},
                "model": text,
                "client": text,
                "live": {"type": "boolean", "description": "Replaces earlier live jobs of the same client."},
                "front": {"type": "boolean"},
                "format": {"enum": list(v1.FORMATS)},
            },
        },
        "Move": {"type": "object", "properties": {"before": {"type": ["string", "null"]}}},
        "Tokens": {"type": "object", "properties": {"model": text, "prompt": text, "negative": text}},
        "Settings": {"type": "object", "properties": {"settings": {"type": "object"}}},
        "Error": {"type": "object", "properties": {"error": {"$ref": "#/components/schemas/Failure"}}},
    }
    paths: dict[str, Any] = {}
    for operation in v1.OPERATIONS:
        paths.setdefault(v1.PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Diffusette", "version": __version__, "description": "Images from text, by way of a durable queue."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(operation: v1.Operation) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    status = "202" if operation.endpoint in {v1.create_job, v1.open_model} else "200"
    found: dict[str, Any] = {
        "operationId": operation.endpoint.__name__,
        "summary": operation.summary,
        "responses": {status: {"description": operation.answer or "done"}, "default": {"description": "refused", **error}},
    }
    names = re.findall(r"\{(\w+)\}", operation.path)
    if names:
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.body == "image":
        found["requestBody"] = {"content": {kind: {} for kind in ("image/png", "image/jpeg", "image/webp")}}
    elif operation.body:
        found["requestBody"] = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{operation.body}"}}}}
    return found


async def openapi(_request: Request) -> Response:
    """The description as JSON."""
    return json_response(document())


async def docs(_request: Request) -> Response:
    """The description as a page."""
    described = document()
    rows = [
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td><td>{html.escape(one['summary'])}</td></tr>"
        for path, methods in described["paths"].items()
        for method, one in methods.items()
    ]
    fields = [
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(one['description'])}</td></tr>"
        for name, one in described["components"]["schemas"]["Request"]["properties"].items()
    ]
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<title>Diffusette API</title><link rel="icon" href="/assets/icon.svg"><link rel="stylesheet" href="/assets/base.css">'
        f'<link rel="stylesheet" href="{_CSS}"><main>'
        f"<h1>Diffusette API {__version__}</h1>"
        f'<p>The description for machines is <a href="{v1.PREFIX}/openapi.json">openapi.json</a>.</p>'
        f"<h2>Operations</h2><table><tr><th>Method<th>Path<th>Purpose</tr>{''.join(rows)}</table>"
        f"<h2>Fields of a request</h2><table><tr><th>Field<th>Meaning</tr>{''.join(fields)}</table></main></html>"
    )


async def style(_request: Request) -> Response:
    """What the page adds to the colours and the type of `base.css`."""
    return Response(_STYLE, media_type="text/css")


_CSS = f"{v1.PREFIX}/docs.css"
_STYLE = """
main { max-width: 1000px; margin: 0 auto; padding: 32px 24px 64px; font-size: 15px; }
h1 { margin-bottom: 12px; font-size: 26px; }
h2 { margin: 36px 0 12px; font-size: 18px; }
a { color: var(--accent-text); }
table { width: 100%; border-collapse: collapse; background: var(--panel); }
th, td { padding: 8px 12px; border: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--sunken); color: var(--muted); }
code { font: 13px var(--mono); }
"""


def routes() -> list[Route]:
    """The routes of the description."""
    return [Route(_CSS, style), Route(f"{v1.PREFIX}/openapi.json", openapi), Route(f"{v1.PREFIX}/docs", docs)]
