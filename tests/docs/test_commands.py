"""Every command and snippet of README and docs runs, page by page, and prints what the page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from diffusette.cli.main import cli
from diffusette.models.bundle import DEMO
from diffusette.models.formats.safetensors_file import open_weights, save_weights
from tests.support import tiny_models
from tests.support.server_process import Server

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SERVER = "http://127.0.0.1:7860"
"""The address that the pages show; a server on a free port answers in its place."""
_FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(console|sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str
    runs: bool


def blocks(page: str) -> list[Block]:
    return [Block(kind, text, not reason) for reason, kind, text in _FENCE.findall((ROOT / page).read_text("utf-8"))]


@pytest.fixture(scope="module")
def stand_ins(bundle_of: Callable[[str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with every file that the pages name: small models in place of large ones."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my-bundle").symlink_to(DEMO)
    (folder / "sdxl").symlink_to(bundle_of("sdxl")[1])
    (folder / "sdxl-refiner").symlink_to(bundle_of("sdxl-refiner")[1])
    tiny_models.save(folder / "stable-diffusion-v1-5", "sd1")
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(ramp, (128, 1)), np.tile(ramp[:, None], (1, 128)), np.full((128, 128), 90, np.uint8)], -1)).save(
        folder / "photo.png"
    )
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (32, 0, 96, 64))
    mask.save(folder / "mask.png")
    rng = np.random.default_rng(0)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    shape = lora_shape(DEMO)
    lora = {
        f"{layer}.lora_up.weight": rng.standard_normal((shape[0], 2)).astype(np.float32) * 0.02,
        f"{layer}.lora_down.weight": rng.standard_normal((2, shape[1])).astype(np.float32) * 0.02,
    }
    (folder / "loras").mkdir()
    for path in (folder / "style.safetensors", folder / "loras" / "ink.safetensors"):
        save_weights(path, lora)
    return folder


def lora_shape(bundle: Path) -> tuple[int, ...]:
    """(out, in) of the layer that the LoRA changes."""
    with open_weights(bundle.parent / "source" / "unet" / "diffusion_pytorch_model.safetensors") as weights:
        return weights["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"].shape


def pattern(shown: str) -> re.Pattern[str]:
    """What matches the output that a page shows: numbers may differ, and a line `...` stands for any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.sub(r"\d+(?:\\\.\d+)*", r"\\d+(?:\\.\\d+)*", re.escape(line)) + "\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


def run(command: str, folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stderr + done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_and_print_what_it_shows(page: str, stand_ins: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(stand_ins, folder, symlinks=True)
    shown = [block for block in blocks(page) if block.runs]
    if any(SERVER in block.text for block in shown):
        with Server(tmp_path / "data") as server:
            run_blocks([replace(block, text=block.text.replace(SERVER, server.url)) for block in shown], folder)
            assert re.findall(r"^(?!GET /readyz).* [45]\d\d \d+ ms$", server.log.read_text(), re.MULTILINE) == []
    else:
        run_blocks(shown, folder)


def run_blocks(shown: list[Block], folder: Path) -> None:
    program = ""
    for block in shown:
        if block.kind == "sh":
            run(block.text, folder)
        elif block.kind == "console":
            for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, expected = entry.partition("\n")
                found = run(command, folder)
                assert pattern(expected).match(found), f"{command}\nshown:\n{expected}\nfound:\n{found}"
        else:
            program += f"\n{block.text}"
    if program:
        done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{program}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page: str) -> None:
    context = click.Context(cli)
    commands = {name: command for name in cli.list_commands(context) if (command := cli.get_command(context, name))}
    options = [option for command in [cli, *commands.values()] for option in command.params]
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "--editable", "--no-index", "--data-binary"}  # click's, pip's, curl's
    text = (ROOT / page).read_text("utf-8")
    lines = [line for line in text.splitlines() if "pip install" not in line and "_COMPLETE" not in line]
    named = {found for line in lines for found in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert named - known - {"--"} == set(), page


@pytest.mark.parametrize("page", [page for page in PAGES if page not in {"README.md", "docs/index.md"}])
def test_every_page_ends_with_its_limits(page: str) -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert headings[-1] == "Limits"


def test_every_message_of_the_troubleshooting_page_is_in_the_sources() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^`(.+)`\n: ", text, re.MULTILINE)
    assert len(messages) >= 30
    sources = "".join(
        path.read_text("utf-8")
        for top in ("models", "runtime", "export", "server", "shipping", "src")
        for path in (ROOT / top).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that continue on the next line
    assert [message for message in messages if message not in joined] == []


def test_the_readme_is_a_first_screen_and_not_a_manual() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
