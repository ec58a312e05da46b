"""What the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from numpy.typing import NDArray

from diffusette.models.manifest import Tensor

os.environ["DIFFUSETTE_WATERMARK_ID"] = "0x1a2b3c4d"  # no identifier of this computer is made
os.environ["DIFFUSETTE_SIGN"] = "off"  # equal requests give equal files, in child processes too; tests of signatures turn them on


LONGEST = (
    "models/test_demo_model.py",
    "docs/test_commands.py",
    "export/test_export.py",
    "runtime/test_model_facts.py",
    "runtime/test_tasks.py",
    "runtime/test_soak.py",
    "export/test_targets.py",
    "test_typing.py",
)
"""The files that take longest, below `tests/`: they go first, so that no process is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files in `LONGEST` first, in its order."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


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
    """Family → (tiny random diffusers folder, its fp32 bundle for the CPU); each exported once for all tests and test processes."""
    from diffusette.export.export import Options, export_model
    from tests.support import tiny_models

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(family: str) -> tuple[Path, Path]:
        folder = shared / f"bundle-{family}"
        with FileLock(shared / f"bundle-{family}.lock"):
            if not (folder / "bundle").exists():
                source = tiny_models.save(folder / "source", family)
                export_model(source, folder / "bundle", Options(precision="fp32"))
        return folder / "source", folder / "bundle"

    return get


@pytest.fixture(scope="session")
def sd1_bundle(bundle_of: Callable[[str], tuple[Path, Path]]) -> Path:
    """A tiny random SD 1.x model as an fp32 bundle."""
    return bundle_of("sd1")[1]
