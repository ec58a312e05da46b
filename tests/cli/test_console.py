"""What reaches the terminal: no control character of a stranger, and no traceback for a letter that the terminal lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from diffusette.cli.console import outline, printable

HOSTILE = "\x1b]0;pwn\x07\x1b[2J\u202egnp\x9b31m"


def image_with(parameters: str, path: Path) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def run(*arguments: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "diffusette", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=False)


def test_control_characters_are_shown_as_escapes_and_ordinary_letters_stay() -> None:
    assert printable("fox 狐 é \t|") == "fox 狐 é \t|"
    assert printable(HOSTILE) == "\\x1b]0;pwn\\x07\\x1b[2J\\u202egnp\\x9b31m"


def test_a_value_of_several_lines_cannot_forge_a_fact() -> None:
    assert outline({"prompt": "fox\nai: False", "ai": True}).splitlines() == ["prompt: fox", "    ai: False", "ai: True"]


@pytest.mark.parametrize("where", ["metadata", "error", "verify"])
def test_no_escape_sequence_reaches_the_terminal(where: str, tmp_path: Path) -> None:
    if where == "metadata":
        done = run("metadata", image_with(f"{HOSTILE}\nSteps: 1, Sampler: {HOSTILE}, Seed: 1", tmp_path / "x.png"))
        assert done.returncode == 0
    elif where == "error":
        done = run("inspect", tmp_path / f"no{HOSTILE.replace('/', '')}")
        assert done.returncode == 1
    else:
        done = run("generate", f"{HOSTILE} <lora:{HOSTILE}:1>", "--steps", "1")
        assert done.returncode == 1
    for stream in (done.stdout, done.stderr):
        assert not set(stream.decode()) & {"\x1b", "\x07", "\x9b", "\u202e"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_a_terminal_that_lacks_a_letter_shows_its_code(encoding: str, tmp_path: Path) -> None:
    path = image_with("狐 é\nSteps: 1, Sampler: Euler, Seed: 1", tmp_path / "狐.png")
    done = run("metadata", path, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"prompt: \\u72d0" in done.stdout
    facts = json.loads(run("metadata", path, "--json", encoding=encoding).stdout.decode(encoding))
    assert facts["prompt"] == "狐 é"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("command", [("inspect",), ("doctor",), ("metadata", "x.png", "--json")])
def test_a_full_stdout_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    image_with("fox\nSteps: 1, Sampler: Euler, Seed: 1", tmp_path / "x.png")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diffusette", *command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert len(done.stderr.decode().splitlines()) == 1
    assert b"No space left on device" in done.stderr
