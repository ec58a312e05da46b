"""The software bill of materials of an installation from the wheel, as CycloneDX 1.6: `python -m tests.support.sbom FILE`.

https://cyclonedx.org/docs/1.6/json/. Equal installations give equal files.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from diffusette.models.formats.atomic_file import replace_file

EXTRAS = {"cpu"}
"""Extras that belong to it: without ONNX Runtime nothing runs."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(found: Distribution, extras: set[str]) -> list[tuple[str, set[str]]]:
    """The distributions that `found` needs here, with the extras that it asks of them."""
    wishes = [Requirement(line) for line in found.requires or []]
    here = [one for one in wishes if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras})]
    return [(canonical(one.name), one.extras) for one in here]


def reference(found: Distribution) -> str:
    return f"pkg:pypi/{canonical(found.name)}@{found.version}"


def component(found: Distribution, kind: str = "library") -> dict[str, Any]:
    """A component, with its licence as it states it, in SPDX's terms if it does so."""
    expression, free = found.metadata.get("License-Expression"), found.metadata.get("License", "").strip().partition("\n")[0]
    classifiers = [one.rpartition(" :: ")[2] for one in found.metadata.get_all("Classifier") or [] if one.startswith("License ::")]
    names = [free] if 0 < len(free) < 80 else classifiers
    licences = [{"expression": expression}] if expression else [{"license": {"name": name}} for name in names]
    ref = reference(found)
    about = {"type": kind, "bom-ref": ref, "name": canonical(found.name), "version": found.version, "purl": ref}
    return about | ({"licenses": licences} if licences else {})


def compose(root: str = "diffusette", extras: set[str] = EXTRAS) -> dict[str, Any]:
    """The bill of materials of the distribution `root` with `extras`, as it is installed here."""
    top = distribution(root)
    found: dict[str, Distribution] = {}
    edges: dict[str, set[str]] = {}
    waiting = [(top, extras)]
    while waiting:
        one, asked = waiting.pop()
        for name, more in needed(one, asked):
            edges.setdefault(reference(one), set()).add(name)
            if name not in found:
                found[name] = distribution(name)
                waiting.append((found[name], more))
    parts = [found[name] for name in sorted(found)]
    links = [
        {"ref": reference(one), "dependsOn": sorted(reference(found[name]) for name in edges.get(reference(one), ()))}
        for one in (top, *parts)
    ]
    bill = {
        "metadata": {"component": component(top, "application")},
        "components": [component(one) for one in parts],
        "dependencies": links,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **bill}


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(compose(), indent=2) + "\n").encode())
