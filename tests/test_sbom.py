"""The software bill of materials names what an installation runs, and nothing of its development."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.support import sbom

ROOT = Path(__file__).parents[1]


def test_the_bill_of_materials_has_every_dependency_once_with_version_and_licence() -> None:
    bill = sbom.compose()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    assert bill["metadata"]["component"]["licenses"] == [{"expression": "Apache-2.0"}]
    names = [one["name"] for one in bill["components"]]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert {re.split(r"[>=<!]", one)[0] for one in declared} | {"onnxruntime"} <= set(names)
    assert len(names) == len(set(names))
    assert not {"pytest", "torch", "starlette", "diffusette"} & set(names)
    assert all(one["licenses"] and one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bill["components"])
    references = {one["bom-ref"] for one in (bill["metadata"]["component"], *bill["components"])}
    assert {one["ref"] for one in bill["dependencies"]} == references
    assert {needed for one in bill["dependencies"] for needed in one["dependsOn"]} < references
    assert sbom.compose() == bill
