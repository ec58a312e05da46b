"""Read and check the C2PA manifest of an image file: state, signer, actions, ingredients. Nothing is fetched from the network."""

from __future__ import annotations

import io
import json
from typing import Any, cast

import msgspec

from . import jumbf
from .c2pa_signer import SETTINGS, installed, library
from .claim import AI_EDITED, AI_MADE, GENERATION

_AI = {AI_MADE.rpartition("/")[2], AI_EDITED.rpartition("/")[2]}
_TIMES = 64
"""Actions and ingredients that are listed."""


class Ingredient(msgspec.Struct, frozen=True):
    """An image that went into this one."""

    title: str
    relationship: str
    signed: bool
    """Whether its own manifest was kept."""


class Action(msgspec.Struct, frozen=True):
    """A step that the signer states."""

    action: str
    source: str = ""
    """The last word of its digitalSourceType."""
    agent: str = ""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifest of a file says, and whether it holds."""

    state: str
    """"trusted", "intact" (valid, signer on no list), "altered", "damaged", or "unchecked" (the extra is missing)."""
    signer: str = ""
    organization: str = ""
    time: str = ""
    """Of a time stamp; empty without one."""
    authority: str = ""
    """Who made the time stamp."""
    time_trusted: bool = False
    """Whether that authority is on a trust list; anybody can run one."""
    problems: tuple[str, ...] = ()
    """C2PA's codes of failures, except that the signer is on no list."""
    actions: tuple[Action, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    ai: bool = False
    """Whether an action names AI as its source, in this manifest or in that of an ingredient."""
    generation: dict[str, Any] = {}
    """Our own assertion."""
    soft_bindings: tuple[str, ...] = ()
    """Algorithms of watermarks that the manifest names."""


def read(data: bytes) -> Credential | None:
    """Return the credential in the image file `data`; None if it has no manifest. Damaged ones are described, never raised."""
    size = jumbf.size_of(data)
    if not size:
        return None
    if not installed():
        return Credential(state="unchecked")
    if size > jumbf.MAX_STORE:
        return Credential(state="damaged", problems=(f"a manifest store of {size:,} bytes",))
    if not jumbf.is_sound(data):
        return Credential(state="damaged", problems=("boxes or CBOR whose lengths are not those of their content",))
    c2pa = library()
    kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg" if data.startswith(b"\xff\xd8") else "image/webp"
    try:
        with c2pa.Reader(kind, io.BytesIO(data), context=c2pa.Context.from_dict(SETTINGS)) as reader:
            found = json.loads(reader.json())
        return _credential(found)
    except (c2pa.C2paError, OSError, ValueError, RecursionError) as error:
        return Credential(state="damaged", problems=(" ".join(str(error).split())[:200],))


def _credential(found: object) -> Credential:
    store = _object(found)
    active = _object(_object(store.get("manifests")).get(str(store.get("active_manifest"))))
    results = _object(_object(store.get("validation_results")).get("activeManifest"))
    problems = dict.fromkeys(str(_object(one).get("code")) for one in _list(results.get("failure")))
    problems.pop("signingCredential.untrusted", None)
    state = {"Trusted": "trusted", "Valid": "intact"}.get(str(store.get("validation_state")), "altered")
    confirmed = {str(_object(one).get("code")): str(_object(one).get("explanation")) for one in _list(results.get("success"))}
    signature = _object(active.get("signature_info"))
    data = _assertions(active)
    actions = _actions(active)
    every = [action for manifest in _object(store.get("manifests")).values() for action in _actions(_object(manifest))]
    return Credential(
        state=state,
        signer=str(signature.get("common_name") or ""),
        organization=str(signature.get("issuer") or ""),
        time=str(signature.get("time") or ""),
        authority=confirmed.get("timeStamp.validated", "").partition(": ")[2],
        time_trusted="timeStamp.trusted" in confirmed,
        problems=tuple(problems),
        actions=actions[:_TIMES],
        ingredients=tuple(_ingredient(_object(one)) for one in _list(active.get("ingredients"))[:_TIMES]),
        ai=any(one.source in _AI for one in every),
        generation=data.get(GENERATION, {}),
        soft_bindings=tuple(str(body.get("alg")) for label, body in data.items() if label.startswith("c2pa.soft-binding")),
    )


def _assertions(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(_object(one).get("label")): _object(_object(one).get("data")) for one in _list(manifest.get("assertions"))}


def _actions(manifest: dict[str, Any]) -> tuple[Action, ...]:
    bodies = [body for label, body in _assertions(manifest).items() if label.startswith("c2pa.actions")]
    return tuple(_action(_object(one)) for body in bodies for one in _list(body.get("actions")))


def _action(one: dict[str, Any]) -> Action:
    agent: object = one.get("softwareAgent")
    name = agent if isinstance(agent, str) else _object(agent).get("name")
    return Action(str(one.get("action")), str(one.get("digitalSourceType") or "").rpartition("/")[2], str(name or ""))


def _ingredient(one: dict[str, Any]) -> Ingredient:
    return Ingredient(str(one.get("title") or ""), str(one.get("relationship") or ""), bool(one.get("active_manifest")))


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
