"""OpenAI's image requests as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ...runtime.request import MAX_SIDE
from ..jobs.models import Catalog
from ..jobs.records import Options, Refused
from ..jobs.requests import Asked, random_seed
from . import masks

Kind = Literal["generation", "edit", "variation"]
SPEEDS = {"low": "fast", "medium": "balanced", "high": "exact", "auto": "exact", "standard": "balanced", "hd": "exact"}
"""Their quality → our speed preset."""
FORMATS: dict[str, Literal["PNG", "JPEG", "WEBP"]] = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
THEIR_MODELS = re.compile(r"(dall-e-\d|gpt-image-[\w.-]+|chatgpt-image-[\w.-]+)")
"""Names of OpenAI's own models, which many programs send whatever they talk to: the first model here answers."""
VARIATION_STRENGTH = 0.6
"""How much a variation changes, unless the client says."""
_EXTRA = {
    "negative_prompt": "negative",
    "steps": "steps",
    "guidance": "guidance",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "sampler": "sampler",
    "schedule": "schedule",
    "strength": "strength",
}
"""Further fields (`extra_body`) → ours."""
_KNOWN = {
    *("prompt", "model", "n", "size", "quality", "response_format", "output_format", "output_compression", "background", "moderation"),
    *("partial_images", "stream", "style", "user", "seed", "input_fidelity", *_EXTRA),
}


class Translated(NamedTuple):
    """An OpenAI request."""

    asked: Asked
    model: str | None
    options: Options
    size: str
    quality: str
    stream: bool
    url: bool
    """The answer has addresses in the place of images."""
    ignored: tuple[str, ...]

    @property
    def format(self) -> str:
        """The format of the files, in their words."""
        return self.options.format.lower()


def translate(body: Mapping[str, Any], kind: Kind, images: Mapping[str, bytes], catalog: Catalog) -> Translated:
    """The request that a body asks for; `images` are its files, by our names.

    Raises:
        Refused: a wrong value, or a feature that does not exist here.
        RequestError: the runtime refuses a value.
    """
    quality = _choice(body, "quality", SPEEDS, "auto")
    output = _choice(body, "output_format", FORMATS, "png")
    if body.get("background") == "transparent":
        raise Refused("unsupported", "background: transparent is not supported; use opaque or auto", "background", 400)
    prompt = body.get("prompt", "" if kind == "variation" else None)
    if not isinstance(prompt, str):
        raise Refused("invalid_request", "prompt: missing, expected text", "prompt")
    fields: dict[str, Any] = {
        "prompt": prompt,
        "count": _whole(body, "n", 1, 1, 10),
        "speed": SPEEDS[quality],
        "seed": random_seed(body.get("seed")),
    }
    fields |= {ours: body[theirs] for theirs, ours in _EXTRA.items() if body.get(theirs) is not None}
    size = str(body.get("size") or "auto")
    if size != "auto":
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if found is None or not all(0 < int(side) <= MAX_SIDE for side in found.groups()):
            raise Refused("invalid_request", f"size: {size[:40]!r}, expected auto, or width x height such as 512x512", "size")
        fields |= {"width": int(found[1]), "height": int(found[2])}
    files = dict(images)
    if "mask" in files:
        files["mask"] = masks.of_transparency(files["mask"])
        fields.setdefault("strength", 1.0)
    elif kind == "variation":
        fields.setdefault("strength", VARIATION_STRENGTH)
    options = Options(
        seed=0,
        variation_seed=0,
        format=FORMATS[output],
        quality=_whole(body, "output_compression", 95, 1, 100),
        partials=_whole(body, "partial_images", 0, 0, 3) if _flag(body, "stream") else 0,
        waits=True,
    )
    return Translated(
        Asked({name: value for name, value in fields.items() if value is not None}, files, dict.fromkeys(files, True)),
        model_of(body.get("model"), catalog),
        options,
        size,
        quality,
        stream=_flag(body, "stream"),
        url=body.get("response_format") == "url",
        ignored=tuple(sorted(name for name in body if name not in _KNOWN)),
    )


def model_of(name: object, catalog: Catalog) -> str | None:
    """The model that a client names; the first for none, and for OpenAI's own names.

    Raises:
        Refused: it is not here.
    """
    if name is not None and not isinstance(name, str):
        raise Refused("invalid_request", "model: expected text", "model")
    if not name or THEIR_MODELS.fullmatch(name):
        return None
    return catalog.find(name).id


def _choice(body: Mapping[str, Any], name: str, known: Mapping[str, object], default: str) -> str:
    value = body.get(name) or default
    if not isinstance(value, str) or value not in known:
        raise Refused("invalid_request", f"{name}: {str(value)[:40]!r}, expected one of {', '.join(known)}", name)
    return value


def _whole(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused("invalid_request", f"{name}: {str(value)[:40]!r}, expected a whole number from {low} to {high}", name)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused("invalid_request", f"{name}: expected true or false", name)
    return bool(value)
