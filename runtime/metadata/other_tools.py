"""Settings that other tools write into images: ComfyUI, InvokeAI, NovelAI, SwarmUI and Fooocus.

Each writes JSON under its own keyword. Unreadable settings are left out; the tool is still named.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

MAX_JSON = 1 << 20
"""Longer JSON, in characters, is ignored."""
_NUMBERS = {"steps": int, "seed": int, "width": int, "height": int, "guidance": float}


@dataclass(frozen=True)
class Foreign:
    """The settings that another tool wrote."""

    tool: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values under the names of `Record`'s fields."""


def read(texts: Mapping[str, str], parameters: str | None) -> Foreign | None:
    """Read the settings in PNG's `texts`, or in `parameters`, the text of any format; None if no other tool is recognized."""
    own = _object(parameters)
    if "sui_image_params" in own:
        return Foreign("SwarmUI", _renamed(_inner(own, "sui_image_params"), {"negativeprompt": "negative", "cfgscale": "guidance"}))
    if "negative_prompt" in own and "prompt" in own:
        sizes = str(own.get("resolution", "")).strip("()").split(",")
        size = dict(zip(("width", "height"), sizes, strict=False)) if len(sizes) == 2 else {}
        return Foreign("Fooocus", _renamed({**own, **size}, {"negative_prompt": "negative", "guidance_scale": "guidance"}))
    invoke = _object(texts.get("invokeai_metadata"))
    if invoke:
        names = {"positive_prompt": "prompt", "negative_prompt": "negative", "cfg_scale": "guidance", "scheduler": "sampler"}
        return Foreign("InvokeAI", _renamed(invoke, names))
    if texts.get("Software") == "NovelAI":
        return Foreign("NovelAI", _renamed(_object(texts.get("Comment")), {"uc": "negative", "scale": "guidance"}))
    graph = _object(texts.get("prompt"))
    if any("class_type" in _inner(graph, name) for name in graph):
        return Foreign("ComfyUI", _comfy(graph))
    return None


def _comfy(graph: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the first sampler node in a ComfyUI graph, with the prompts and the size linked to it."""
    for name in graph:
        inputs = _inner(_inner(graph, name), "inputs")
        if "KSampler" not in str(_inner(graph, name).get("class_type")) or "positive" not in inputs:
            continue
        found = _renamed(
            {**inputs, "seed": inputs.get("seed", inputs.get("noise_seed"))},
            {"cfg": "guidance", "sampler_name": "sampler", "scheduler": "schedule"},
        )
        for wanted, link in (("prompt", "positive"), ("negative", "negative")):
            text = _upstream(graph, inputs.get(link), "text")
            if isinstance(text, str):
                found[wanted] = text
        size = {side: _upstream(graph, inputs.get("latent_image"), side) for side in ("width", "height")}
        return {**found, **_renamed({side: value for side, value in size.items() if value is not None}, {})}
    return {}


def _upstream(graph: dict[str, Any], link: object, wanted: str) -> object:
    """Return the input `wanted` of the nearest node that has it, from the node behind `link` upstream; each node is seen once."""
    links, seen = deque([link]), set[str]()
    while links:
        link = links.popleft()
        name = str(cast("list[object]", link)[0]) if isinstance(link, list) and link else None
        if name is None or name in seen:
            continue
        seen.add(name)
        inputs = _inner(_inner(graph, name), "inputs")
        value = inputs.get(wanted)
        if value is not None and not isinstance(value, list):
            return value
        links.extend(inputs.values())
    return None


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the entries of `settings` that records have too, converted to their types; invalid values are left out."""
    found: dict[str, Any] = {}
    known = {"prompt", "negative", "sampler", "schedule", "model", *_NUMBERS}
    for key, value in settings.items():
        name = names.get(key, key)
        if name not in known or isinstance(value, (dict, list, bool)) or value is None:
            continue
        try:
            found[name] = _NUMBERS.get(name, str)(value)
        except (ValueError, OverflowError):
            continue
    return found


def _object(text: str | None) -> dict[str, Any]:
    """Return the JSON object in `text`; empty if it is not an object."""
    if not text or len(text) > MAX_JSON or text.lstrip()[:1] != "{":
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _inner(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
