"""The types that a stranger's tools see: pyright and mypy on a program that uses diffusette, installed as a wheel and editable."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSUMER = """
from typing import assert_type

import diffusette
from diffusette.export import Options
from PIL import Image

with diffusette.load("my-bundle", memory="sequential") as pipeline:
    assert_type(pipeline, diffusette.Pipeline)
    result = pipeline.generate("fox", seed=1, steps=4)
    assert_type(result, diffusette.Result)
    assert_type(result.seeds, tuple[int, ...])
    assert_type(result.images[0], Image.Image)
    for event in pipeline.steps(diffusette.Request("fox", width=64)):
        if isinstance(event, diffusette.Step):
            assert_type(event.done, float)
assert_type(diffusette.generate("fox"), diffusette.Result)
Options(target="cpu")
pipeline.generate("fox", stepz=4)  # a misspelt keyword
pipeline.generate("fox", steps="4")  # a wrong type
diffusette.load(3)  # a wrong type
diffusette.loud()  # an unknown name
"""
WRONG = [number for number, line in enumerate(CONSUMER.splitlines(), 1) if "# a" in line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without what no package holds."""
    copy = tmp_path_factory.mktemp("typing") / "checkout"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("models/demo/source", "tests", "benchmarks/results", "docs")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module", params=["wheel", "editable"])
def python(request: pytest.FixtureRequest, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with diffusette; its dependencies come from this one."""
    environment = tmp_path_factory.mktemp(request.param) / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    source = ["--editable", str(checkout)] if request.param == "editable" else [str(checkout)]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *source]
    subprocess.run(command, check=True, capture_output=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def pyright(python: Path, program: Path) -> set[int]:
    command = [sys.executable, "-m", "pyright", "--pythonpath", str(python), "--outputjson", str(program)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False, cwd=program.parent).stdout)
    return {one["range"]["start"]["line"] + 1 for one in found["generalDiagnostics"] if one["severity"] == "error"}


def mypy(python: Path, program: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--follow-imports", "silent", "--strict", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=program.parent)
    return {int(found[1]) for found in re.finditer(r"program\.py:(\d+): error", done.stdout)}


@pytest.mark.parametrize("checker", [pyright, mypy])
def test_a_program_is_checked_against_the_real_types(python: Path, checker: Callable[[Path, Path], set[int]], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CONSUMER)
    assert sorted(checker(python, program)) == WRONG


def test_a_checkout_does_not_shadow_the_installed_package(python: Path, checkout: Path) -> None:
    code = "import diffusette, diffusette.runtime.request; print(diffusette.Request('fox').prompt)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=checkout)
    assert done.stdout == "fox\n"
