"""The architecture: which package may import which, what the runtime leaves unloaded, what the wheel contains."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {
    "models": "models",
    "runtime": "runtime",
    "export": "export",
    "benchmarks": "benchmarks",
    "server": "server",
    "shipping": "shipping",
    "cli": "src/diffusette/cli",
    "": "src/diffusette",
}
"""Package below `diffusette` → its folder in the repository."""
TOP = {
    "models": "",
    "runtime": "models",
    "export": "models",
    "benchmarks": "models runtime",
    "server": "models runtime",
    "shipping": "models runtime",
    "cli": "models runtime export benchmarks server shipping",
    "": "models runtime export cli",
}
"""Arrows between the top folders. `runtime_bridge.py` and `calibration.py` of `export` may import `runtime` too: they record the real
pipeline. The recipe of the demo model is exempt."""
BRIDGES = {"export.runtime_bridge", "export.calibration"}
GROUND = "types names request"
"""The ground floor of the runtime, which every room may import."""
ARROWS = {
    "models": {
        "errors": "",
        "manifest": "errors",
        "families": "errors manifest",
        "formats": "errors manifest families",
        "licences": "",
        "bundle": "errors manifest families formats",
    },
    "runtime": {
        "types": "",
        "names": "request",
        "request": "",
        "user_folders": "",
        "engine": GROUND,
        "prompt": GROUND,
        "sampling": GROUND,
        "images": f"{GROUND} engine",
        "adapters": f"{GROUND} engine normalize prompt",
        "metadata": f"{GROUND} images prompt sampling",
        "provenance": f"{GROUND} images user_folders",
        "watermark": f"{GROUND} engine images provenance",
        "normalize": f"{GROUND} images",
        "resolve": f"{GROUND} images normalize sampling",
        "denoising": f"{GROUND} engine sampling",
        "unet_graphs": f"{GROUND} engine sampling",
        "conditioning": f"{GROUND} engine images prompt resolve sampling unet_graphs",
        "refiner": f"{GROUND} denoising engine sampling",
        "result": f"{GROUND} metadata",
        "saving": f"{GROUND} images metadata provenance result watermark",
        "detector": f"{GROUND} images metadata provenance watermark",
        "reproduce": f"{GROUND} adapters denoising metadata normalize resolve",
        "doctor": "engine",
        "pipeline": (
            f"{GROUND} adapters conditioning denoising engine images normalize refiner reproduce resolve result sampling unet_graphs"
        ),
    },
    "export": {
        "graphs": "",
        "runtime_bridge": "",
        "calibration": "graphs runtime_bridge",
        "passes": "graphs",
        "subgraphs": "graphs runtime_bridge",
        "sources": "graphs runtime_bridge",
        "quantization": "graphs passes runtime_bridge",
        "tracing": "graphs runtime_bridge sources",
        "targets": "graphs passes",
        "packaging": "graphs passes sources subgraphs",
        "float_graphs": "graphs packaging runtime_bridge sources targets tracing",
        "export": "calibration float_graphs graphs packaging quantization runtime_bridge sources targets tracing",
    },
    "benchmarks": {
        "measure": "",
        "quality": "measure",
        "rivals": "measure",
        "results": "measure quality",
        "profiles": "results",
        "reporting": "measure profiles quality results",
        "settings": "measure profiles quality rivals",
        "runner": "measure quality reporting results rivals settings",
        "tune": "results runner settings",
        "spread": "measure quality settings",
        "smoke": "reporting results runner settings",
        "full_parts": "measure results rivals runner",
        "full": "full_parts measure quality reporting results rivals",
    },
    "server": {
        "limits": "",
        "log": "",
        "phases": "",
        "stdio": "phases",
        "jobs": "limits log phases",
        "api": "jobs",
        "assets": "jobs",
        "connections": "limits",
        "sign_in": "",
        "security": "api jobs limits log sign_in",
        "app": "api assets jobs log security",
        "serve": "app connections jobs limits security",
    },
    "shipping": {
        "browser": "",
    },
}
"""Package (or a module beside the packages) → the ones of the same top folder that it may import. Modules of one package may import
each other; nothing may import against an arrow."""
ENGINE = {"runtime.engine.session", "runtime.engine.ort_library"}
"""The only modules that name ONNX Runtime."""


def files(folder: Path) -> list[Path]:
    """Every Python file below `folder`, at any depth, that is part of the package."""
    return [path for path in sorted(folder.rglob("*.py")) if not {"demo", "engines", "cli"} & set(path.relative_to(folder).parts[:-1])]


def modules() -> Iterator[tuple[str, Path]]:
    """(name below `diffusette`, path) of every module."""
    for top, place in PLACES.items():
        for path in files(ROOT / place):
            parts = [*([top] if top else []), *path.relative_to(ROOT / place).with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(name: str, path: Path) -> Iterator[str]:
    """What the module imports from this project, as names below `diffusette`, wherever in the file the statement is."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias for alias in node.names if alias.name.split(".")[0] == "diffusette"], f"{path}: use relative imports"
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*(part for part in package if part)][: len(package) - (node.level - 1)]
            yield from (".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "diffusette", f"{path}: use relative imports"


def violations(found: Iterable[tuple[str, Path]]) -> list[str]:
    """Imports that no arrow allows, each with both names."""
    wrong: list[str] = []
    for name, path in found:
        top, room = (*name.split("."), "", "")[:2] if name.split(".")[0] in TOP else ("", "")
        for other in imports(name, path):
            other_top, other_room = (*other.split("."), "")[:2] if other.split(".")[0] in TOP else ("", "")
            if top != other_top:
                if other_top not in TOP[top].split() and not (name in BRIDGES and other_top == "runtime") and other_top:
                    wrong.append(f"{name} imports {other}: {top or 'diffusette'} may import {TOP[top] or 'nothing'}")
            elif top in ARROWS and room and room != other_room and other_room not in ARROWS[top].get(room, "").split():
                wrong.append(f"{name} imports {other}: {room} may import {ARROWS[top].get(room) or 'nothing'}")
    return wrong


def test_every_import_follows_an_arrow_of_the_table() -> None:
    assert violations(modules()) == []


def test_every_arrow_of_the_table_is_used() -> None:
    used = {(name.split(".")[:2][-1], *other.split(".")[:2]) for name, path in modules() for other in imports(name, path)}
    declared = {(room, top, below) for top, rooms in ARROWS.items() for room, all_below in rooms.items() for below in all_below.split()}
    ground = {("runtime", below) for below in GROUND.split()}
    assert sorted(arrow for arrow in declared - used if arrow[1:] not in ground) == []


def test_every_package_has_its_place_in_the_table_and_the_table_names_nothing_else() -> None:
    rooms = {top: {name.split(".")[1] for name, _ in modules() if name.startswith(f"{top}.")} for top in ARROWS}
    assert {top: set(arrows) for top, arrows in ARROWS.items()} == rooms


def test_the_arrows_of_the_table_run_downwards() -> None:
    for arrows in ARROWS.values():
        done: set[str] = set()
        while len(done) < len(arrows):
            ready = {room for room, below in arrows.items() if set(below.split()) <= done} - done
            assert ready, f"a circle among {sorted(arrows.keys() - done)}"
            done |= ready


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("runtime.sampling.deep.planted", "from ...engine import session", "sampling may import types names request"),
        ("runtime.prompt.planted", "from ...export import export", "runtime may import models"),
        ("export.passes.planted", "from ..quantization.int8 import x", "passes may import graphs"),
        ("models.formats.planted", "def f():\n    from ..bundle import open_bundle", "formats may import errors manifest families"),
    ],
)
def test_a_planted_import_against_an_arrow_is_found_with_both_names(tmp_path: Path, name: str, line: str, said: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(line)
    (found,) = violations([(name, planted)])
    assert found.startswith(f"{name} imports ")
    assert said in found


def test_the_inference_engine_is_named_in_two_modules_only() -> None:
    for name, path in modules():
        heads = {
            alias.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([one.name for one in node.names] if isinstance(node, ast.Import) else [] if node.level else [node.module or ""])
        }
        assert "onnxruntime" not in heads or name in ENGINE or name.startswith("export."), path


def test_every_package_says_what_it_contains() -> None:
    for name, path in modules():
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text()))
            assert text, f"{name}: no docstring"
            assert name == "" or ("Start at" in text and "import" in text.lower()), name


def test_importing_the_runtime_leaves_the_heavy_packages_out() -> None:
    heavy = ("torch", "transformers", "diffusers", "onnx", "onnxruntime")
    code = f"""
import sys, pkgutil, importlib, diffusette.runtime
for module in pkgutil.walk_packages(diffusette.runtime.__path__, "diffusette.runtime."):
    importlib.import_module(module.name)
assert "diffusette.runtime.sampling.samplers" in sys.modules
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_nothing_that_takes_time() -> None:
    code = "import sys, diffusette; print([n for n in ('numpy', 'PIL', 'click', 'msgspec') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(listed) == {f"diffusette.{name}".rstrip(".") for name in folders}
    assert {path.parent for _, path in modules()} == {path.parent for _, path in modules() if path.name == "__init__.py"}


def test_the_wheel_holds_every_module_and_the_demo_model_and_stays_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name, path in modules():
        inside = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        assert "/".join(["diffusette", *filter(None, inside), path.name]) in names
    assert "diffusette/py.typed" in names
    assert "diffusette/models/demo/bundle/manifest.json" in names
    assert "diffusette/models/demo/bundle/unet/model.onnx" in names
    assert "diffusette/server/page/index.html" in names
    assert "diffusette/shipping/browser/site/index.html" in names
    assert not [name for name in names if name.startswith(("export/", "runtime/", "models/")) or "/source/" in name]
    assert wheel.stat().st_size < 40e6


def test_ci_installs_pinned_versions_with_hashes() -> None:
    lock = (ROOT / ".ci" / "requirements.txt").read_text("utf-8")
    pins = re.findall(r"^([a-z0-9._-]+)==\S+(?: ;[^\\]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE)) > 100
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = {re.split(r"[\[<>=;! ]", need)[0].lower() for extra in ("dev", "docs") for need in extras[extra]} - {"diffusette", "torch"}
    assert wanted - {name for name, _ in pins} == set()
