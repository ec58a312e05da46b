"""Shells complete commands, options, and the names that options take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def completions(*words: str) -> list[str]:
    environment = os.environ | {
        "_DIFFUSETTE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["diffusette", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = "from diffusette.cli.main import cli; cli(prog_name='diffusette')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ge",), ["generate"]),
        (("generate", "fox", "--sampler", "euler"), ["euler", "euler_a", "euler_flow"]),
        (("generate", "fox", "--schedule", "kar"), ["karras"]),
        (("generate", "fox", "--provider", "op"), ["openvino"]),
        (("generate", "fox", "--memory", "s"), ["sequential", "streamed"]),
        (("generate", "fox", "--speed", "b"), ["balanced"]),
        (("generate", "fox", "--hires-up"), ["--hires-upscaler"]),
    ],
)
def test_a_shell_completes(words: tuple[str, ...], expected: list[str]) -> None:
    assert completions(*words) == expected


def test_the_scripts_that_the_documentation_names_exist() -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = os.environ | {"_DIFFUSETTE_COMPLETE": f"{shell}_source"}
        code = "from diffusette.cli.main import cli; cli(prog_name='diffusette')"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert "_DIFFUSETTE_COMPLETE" in done.stdout, done.stderr
