"""Licences of weights that restrict what a model may be used for, and hand that on to models made from it.

The identifiers are those of model cards. Such licences (RAIL: *responsible AI licences*) ask whoever passes on the model, or one derived
from it, to pass on the restrictions and the licence's text, and to say which files were changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Restricted(NamedTuple):
    """A licence with restrictions of use."""

    title: str
    text: str
    """Where its authors publish it."""


_M = Restricted("CreativeML OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license")
_STABILITY = Restricted("Stability AI Community License", "https://stability.ai/license")

RESTRICTED: Mapping[str, Restricted] = MappingProxyType(
    {
        "creativeml-openrail-m": _M,
        "openrail": Restricted("OpenRAIL", "https://huggingface.co/blog/open_rail"),
        "openrail++": Restricted(
            "CreativeML Open RAIL++-M", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"
        ),
        "bigscience-openrail-m": Restricted(
            "BigScience OpenRAIL-M", "https://www.licenses.ai/blog/2022/8/26/bigscience-open-rail-m-license"
        ),
        "stabilityai-ai-community": _STABILITY,
        "stable-community": _STABILITY,
    }
)
"""Identifier of a licence → what it is."""


def restricted(licence: str) -> Restricted | None:
    """Return what is known of `licence`, an identifier or a title, if it restricts use."""
    key = re.sub(r"[\s_]+", "-", licence.strip().lower())
    found = RESTRICTED.get(key)
    if found is None and "rail" in re.split(r"[^a-z]+", key.replace("openrail", "open-rail")):
        found = next((one for one in RESTRICTED.values() if one.title.lower().replace(" ", "-") in key), Restricted(licence, ""))
    return found
