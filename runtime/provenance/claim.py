"""What a signature claims about an image, as a C2PA manifest.

C2PA specification 2.2, sections 18.13 (actions), 18.10 (soft bindings): https://spec.c2pa.org/. An image from text is `c2pa.created`; one
that started from another image is `c2pa.opened`, with that image as its parent, then `c2pa.edited`.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from .soft_binding import Mark

AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
AI_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATION = "diffusette.generation"
"""Label of our own assertion. We own no domain, so everything of ours begins with this word."""
PARENT = "input"
"""Name of the parent ingredient within a manifest."""
NO_TIMESTAMP = "none: the time is the clock of the computer that generated the image"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that are signed."""

    edited: bool
    """Whether the image started from another one."""
    agent: str
    """The program that generated the image."""
    agent_version: str
    provider: str = ""
    system: str
    system_version: str
    identifier: str
    """Unique for each image."""
    time: str
    """UTC, ISO 8601."""
    model: str = ""
    fingerprint: str = ""
    """SHA-256 of the bundle, in hex."""
    prompt: str = ""
    negative: str = ""
    prompt_writer: str = ""
    mark: Mark | None = None
    timestamped: bool = False


def manifest(claim: Claim, *, parent: bool) -> dict[str, Any]:
    """Return the definition of the manifest; with `parent`, for a builder that gets an ingredient `PARENT`.

    An edited image whose input is not at hand is `c2pa.created` as a composite, since `c2pa.opened` needs the ingredient.
    """
    assertions = [
        {"label": "c2pa.actions.v2", "data": {"actions": _actions(claim, parent=parent)}},
        {"label": GENERATION, "data": _generation(claim)},
    ]
    if claim.mark is not None:
        assertions.append({"label": "c2pa.soft-binding", "data": _soft_binding(claim.mark)})
    return {"claim_generator_info": [{"name": claim.agent, "version": claim.agent_version}], "assertions": assertions}


def ingredient() -> dict[str, Any]:
    """Return the definition of the parent ingredient. It names no file, since names of files are private."""
    return {"title": PARENT, "relationship": "parentOf", "instance_id": PARENT, "label": PARENT}


def _actions(claim: Claim, *, parent: bool) -> list[dict[str, Any]]:
    common = {"when": claim.time, "softwareAgent": {"name": claim.agent, "version": claim.agent_version}}
    source = AI_EDITED if claim.edited else AI_MADE
    if parent:
        opened = {"action": "c2pa.opened", "when": claim.time, "parameters": {"ingredientIds": [PARENT]}}
        actions = [opened, {"action": "c2pa.edited", "digitalSourceType": source, **common}]
    else:
        actions = [{"action": "c2pa.created", "digitalSourceType": source, **common}]
    return [*actions, *([{"action": "c2pa.watermarked", **common}] if claim.mark else [])]


def _soft_binding(mark: Mark) -> dict[str, Any]:
    """The value is text in the manifest: as it is if it is printable ASCII, which is how listed algorithms write it, or else base64."""
    text = mark.value.decode("ascii", "replace")
    value = text if text.isascii() and text.isprintable() else base64.b64encode(mark.value).decode()
    return {"alg": mark.alg, "blocks": [{"scope": {}, "value": value}]}


def _generation(claim: Claim) -> dict[str, Any]:
    facts = {
        "provider": claim.provider,
        "system": claim.system,
        "systemVersion": claim.system_version,
        "identifier": claim.identifier,
        "time": claim.time,
        "timeStamp": "in the signature" if claim.timestamped else NO_TIMESTAMP,
        "model": claim.model,
        "modelSha256": claim.fingerprint,
        "prompt": claim.prompt,
        "negativePrompt": claim.negative,
        "promptWriter": claim.prompt_writer,
    }
    return {name: value for name, value in facts.items() if value}
