"""How fast things begin, and how little is done beside the model: bounds in processor time, best of several, for busy machines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import diffusette
from diffusette.cli.main import cli

pytestmark = pytest.mark.alone
resource = pytest.importorskip("resource", reason="Windows does not tell the processor time of children")


def seconds(*command: str) -> float:
    """Processor time of a Python that runs `command`, best of three."""
    taken: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_importing_the_package_costs_nothing() -> None:
    assert seconds("-c", "import diffusette") - seconds("-c", "") < 0.05


def test_help_comes_at_once() -> None:
    assert seconds("-m", "diffusette", "--help") < 0.15


def test_the_help_lists_the_first_line_of_each_command() -> None:
    context = click.Context(cli)
    listed = cli.get_help(context)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert re.search(rf"^  {name} +{re.escape(command.get_short_help_str(100))}$", listed, re.MULTILINE)


def loaded(code: str, *names: str) -> set[str]:
    """Which of the modules `names` are loaded once `code` has run."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*{set(names)!r} & sys.modules.keys())"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_neither_the_import_nor_help_loads_what_only_drawing_needs() -> None:
    assert loaded("import diffusette.__main__", "numpy", "onnxruntime", "PIL", "tokenizers", "msgspec", "rich") == set()


def test_drawing_loads_no_network_client() -> None:
    code = "from diffusette.cli import inputs; from diffusette.runtime import pipeline; pipeline.load()"
    assert loaded(code, "urllib.request", "http.client", "ssl", "rich", "numpy") == {"numpy"}


def test_a_picture_of_the_demo_model_comes_soon(tmp_path: Path) -> None:
    """1.2 s from shell to file on two quiet cores are 1.6 s of processor time."""
    assert seconds("-m", "diffusette", "generate", "fox, noto style", "--seed", "1", "-o", str(tmp_path / "fox.png")) < 3.0


def test_what_is_done_beside_the_model_is_less_than_a_tenth() -> None:
    with diffusette.load(threads=1) as drawer:
        shares: list[float] = []
        for seed in range(4):
            timings = dict(drawer.generate("red apple, flat style, blue background", seed=seed).timings)
            total = timings.pop("total")
            shares.append((total - sum(timings.values())) / total)
    assert min(shares) < 0.1
