"""What the tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from diffusette.models.manifest import Tensor


@dataclass
class FakeSession:
    """A session that calls `function`; `fed` keeps what it was given."""

    function: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    provider: str = "fake"
    fed: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.fed.append(dict(feeds))
        return self.function(feeds)


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Family → (tiny random diffusers folder, its fp32 bundle for the CPU); each exported once for all tests."""
    from diffusette.export.export import Options, export_folder
    from tests import tiny_models

    made: dict[str, tuple[Path, Path]] = {}

    def get(family: str) -> tuple[Path, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            source = tiny_models.save(folder / "source", family)
            export_folder(source, folder / "bundle", Options(precision="fp32"))
            made[family] = (source, folder / "bundle")
        return made[family]

    return get


@pytest.fixture(scope="session")
def sd1_bundle(bundle_of: Callable[[str], tuple[Path, Path]]) -> Path:
    """A tiny random SD 1.x model as an fp32 bundle."""
    return bundle_of("sd1")[1]
