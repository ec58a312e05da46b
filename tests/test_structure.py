"""The house: which folder may import which, what the runtime leaves unloaded, what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARROWS = {
    "models": set(),
    "runtime": {"models"},
    "export": {"models"},
    "benchmarks": {"models", "runtime"},
    "diffusette": {"models", "runtime", "export", "benchmarks"},
}
EXCEPTIONS = {("export/calibrate.py", "runtime")}
"""Calibration records what the real pipeline feeds to its sessions."""
ENGINE = {"runtime/session.py", "runtime/providers.py"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement in the file, wherever it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, f"{node.module}.{alias.name}" if node.module else alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("folder", sorted(ARROWS))
def test_a_folder_imports_only_from_the_folders_its_arrows_allow(folder: str) -> None:
    for path in modules(folder):
        place = f"{folder}/{path.name}"
        level_of_others = 1 if folder == "diffusette" else 2
        for level, module in imports(path):
            head = module.split(".")[0]
            if level == level_of_others and head in ARROWS:
                assert head in ARROWS[folder] or (place, head) in EXCEPTIONS, f"{place} imports {head}"
            assert head != "diffusette" or level, f"{place}: imports inside the package are relative"


def test_the_inference_engine_is_named_in_two_files_only() -> None:
    for folder in ("models", "runtime", "benchmarks", "diffusette"):
        for path in modules(folder):
            heads = {module.split(".")[0] for level, module in imports(path) if not level}
            assert "onnxruntime" not in heads or f"{folder}/{path.name}" in ENGINE, path


def test_importing_the_runtime_leaves_the_heavy_packages_out() -> None:
    heavy = ("torch", "transformers", "diffusers", "onnx", "onnxruntime")
    code = f"""
import sys, pkgutil, importlib, diffusette.runtime
for module in pkgutil.iter_modules(diffusette.runtime.__path__):
    importlib.import_module("diffusette.runtime." + module.name)
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_nothing_that_takes_time() -> None:
    code = "import sys, diffusette; print([n for n in ('numpy', 'PIL', 'click', 'msgspec') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert set(settings["packages"]) == {"diffusette"} | {f"diffusette.{name}" for name in folders - {"diffusette"}}
    assert settings["package-dir"] == {"diffusette": "diffusette"} | {f"diffusette.{name}": name for name in folders - {"diffusette"}}


def test_the_wheel_holds_every_module_and_the_demo_model_and_stays_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ARROWS:
        for path in modules(folder):
            assert (f"diffusette/{path.name}" if folder == "diffusette" else f"diffusette/{folder}/{path.name}") in names
    assert "diffusette/models/demo/bundle/manifest.json" in names
    assert "diffusette/models/demo/bundle/unet/model.onnx" in names
    assert not [name for name in names if name.startswith(("export/", "runtime/", "models/")) or "/source/" in name]
    assert wheel.stat().st_size < 40e6
