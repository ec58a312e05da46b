"""The command line as people meet it: a process, its two streams, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

APPLE = "red apple, flat style, blue background"


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusette", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_the_demo_model_draws_a_red_apple_on_blue(tmp_path: Path) -> None:
    done = run("generate", APPLE, "--seed", "7", "-o", tmp_path / "apple.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "apple.png")
    picture = np.asarray(Image.open(tmp_path / "apple.png"), np.int16)
    assert picture.shape == (128, 128, 3)
    corner, middle = picture[:12, :12].mean((0, 1)), picture[56:88, 48:80].mean((0, 1))
    assert np.abs(corner - (52, 116, 226)).max() < 30
    assert middle[0] > 150
    assert max(middle[1], middle[2]) < 110


def test_the_same_seed_writes_the_same_bytes_and_a_picture_can_be_drawn_again_from_its_file(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        assert run("generate", APPLE, "--seed", "7", "-o", tmp_path / name).returncode == 0
    assert run("generate", "--from", tmp_path / "one.png", "-o", tmp_path / "three.png").returncode == 0
    first, *others = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png", "three.png"))
    assert others == [first, first]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "--hires 1.5 --hires-steps 2 --hires-strength 0.4 --hires-upscaler Latent",
            "Hires upscale: 1.5, Hires steps: 2, Denoising strength: 0.4, Hires upscaler: Latent",
        ),
        ("--variation 0.2 --variation-seed 5 --guidance-interval 0.2 0.8", "Variation seed strength: 0.2, Variation seed: 5"),
        ("--sampler ddim --sampler-option eta=0.5 --timesteps 900,600,300", "Schedule type: custom"),
        ("--sampler euler --sampler-option s_churn=3 --sigmas 9,3,1 --rng torch", "RNG: torch"),
    ],
)
def test_every_way_of_drawing_is_recorded_and_drawn_again(tmp_path: Path, options: str, said: str) -> None:
    steps = [] if "," in options else ["--steps", "3"]
    done = run("generate", APPLE, "--seed", "7", *steps, *options.split(), "-o", tmp_path / "one.png")
    assert done.returncode == 0, done.stderr
    assert run("generate", "--from", tmp_path / "one.png", "-o", tmp_path / "two.png").returncode == 0
    first = (tmp_path / "one.png").read_bytes()
    assert first == (tmp_path / "two.png").read_bytes()
    assert said.encode() in first


def test_only_what_the_mask_covers_is_drawn_and_the_file_says_what_it_needs_again(tmp_path: Path) -> None:
    Image.new("RGB", (200, 160), (240, 230, 220)).save(tmp_path / "init.png")
    mask = Image.new("L", (200, 160))
    mask.paste(255, (80, 60, 120, 100))
    mask.save(tmp_path / "mask.png")
    pictures = ["--init", tmp_path / "init.png", "--mask", tmp_path / "mask.png"]
    options = ["--only-masked", "--mask-padding", "10", "--mask-blur", "1", "--strength", "0.8", "--steps", "3", "--seed", "1"]
    done = run("generate", APPLE, *pictures, *options, "-o", tmp_path / "one.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.size == (200, 160)
        assert drawn.getpixel((60, 40)) == (240, 230, 220)
        assert "Inpaint area: Only masked, Mask blur: 1.0, Masked area padding: 10" in drawn.info["parameters"].replace(
            "blur: 1,", "blur: 1.0,"
        )
    again = run("generate", "--from", tmp_path / "one.png", *pictures, "-o", tmp_path / "two.png")
    assert again.returncode == 0, again.stderr
    assert "note" not in again.stderr
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    Image.new("RGB", (200, 160), (0, 230, 220)).save(tmp_path / "init.png")
    other = run("generate", "--from", tmp_path / "one.png", *pictures, "-o", tmp_path / "three.png")
    assert "note: init differs from the original" in other.stderr
    assert "which is not in the file; add it with --mask" in run("generate", "--from", tmp_path / "one.png", *pictures[:2]).stderr


def test_variations_of_one_picture_have_names_of_their_own(tmp_path: Path) -> None:
    done = run(
        "generate",
        "fox",
        "--seed",
        "3",
        "--variation",
        "0.1",
        "--variation-seed",
        "8",
        "--count",
        "2",
        "--steps",
        "1",
        "-o",
        "fox.png",
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["fox-3-8.png", "fox-3-9.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox-3-8.png", "fox-3-9.png"]


def test_json_goes_to_stdout_alone_and_says_what_ran(tmp_path: Path) -> None:
    done = run("generate", "fox", "--seed", "1", "--count", "2", "--steps", "2", "-o", tmp_path / "fox.png", "--provider", "cpu", "--json")
    facts = json.loads(done.stdout)
    assert facts["provider"] == "cpu"
    assert facts["seeds"] == [1, 2]
    assert facts["files"] == [str(tmp_path / "fox-1.png"), str(tmp_path / "fox-2.png")]
    assert set(facts["timings"]) == {"text_encoder", "unet", "vae_decoder", "total"}


def test_without_a_name_the_file_is_named_after_prompt_and_seed(tmp_path: Path) -> None:
    done = run("generate", "A Fox!", "--seed", "3", "--steps", "1", cwd=tmp_path)
    assert done.stdout.strip() == "a-fox-3.png"
    assert (tmp_path / "a-fox-3.png").exists()


def test_a_file_name_is_counted_in_bytes(tmp_path: Path) -> None:
    prompt = "\U0001d4ec" * 70  # letters of four bytes
    seeds = ["--seed", str(2**63), "--variation", "0.1", "--variation-seed", str(2**63)]
    done = run("generate", prompt, "--steps", "2", *seeds, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 1
    long = run("generate", "fox", "--count", "2", "-o", "a" * 230 + ".png", cwd=tmp_path)
    assert (long.returncode, "expected at most 215" in long.stderr) == (1, True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for output in ("pipe.png", "/proc/self/image.png"):
        done = run("generate", "fox", "--steps", "2", "-o", output, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n"), output in done.stderr) == (1, 1, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "fox", "--sampler", "eulr"], 1, ["eulr", "euler"]),
        (["generate", "fox", "--width", "7"], 1, ["width", "7", "multiple of 8"]),
        (["generate", "fox", "--steps", "0"], 1, ["steps", "0"]),
        (["generate", "fox", "--guidance", "nan"], 1, ["guidance: nan"]),
        (["generate", "fox", "--hires", "2", "--hires-upscaler", "esrgan"], 1, ["esrgan", "latent_bicubic"]),
        (["generate", "fox", "--timesteps", "900,x"], 1, ["timesteps", "'x'", "999,800"]),
        (["generate", "fox", "--sampler-option", "eta"], 1, ["'eta'", "NAME=VALUE"]),
        (["generate", "fox", "--sampler", "euler", "--sampler-option", "eta=1"], 1, ["euler has no option 'eta'", "s_churn"]),
        (["generate", "fox", "--refiner-start", "0.8"], 1, ["no refiner is open", "--refiner DIR"]),
        (["generate", "fox", "--refiner", "{empty}"], 1, ["empty", "no model"]),
        (["generate", "fox", "--decoder", "tiny"], 1, ["decoder", "has no tiny decoder"]),
        (["generate", "fox", "--image-guidance", "2"], 1, ["image_guidance", "pix2pix"]),
        (["generate", "fox", "--only-masked"], 1, ["only_masked", "--mask"]),
        (["generate", "fox", "--model", "{empty}"], 1, ["empty", "no model"]),
        (["generate", "fox", "--model", "{empty}/none"], 1, ["no such folder"]),
        (["generate", "fox", "-o", "{empty}/none/fox.png"], 1, ["none", "no such folder"]),
        (["generate", "fox", "-o", "{empty}/fox.gif"], 1, ["fox.gif", ".png"]),
        (["generate", "fox", "--init", "{empty}/none.png"], 1, ["none.png"]),
        (["generate", "fox", "--provider", "cuda"], 1, ["cuda", "made for 'cpu'", "--target cuda"]),
        (["generate", "fox", "--provider", "tpu"], 1, ["tpu", "webgpu", "auto"]),
        (["generate"], 2, ["prompt"]),
        (["generate", "fox", "--seed", "seven"], 2, ["seed"]),
        (["generate", "fox", "--flavour", "sweet"], 2, ["--flavour"]),
        (["draw"], 2, ["draw"]),
        (["inspect", "{empty}"], 1, ["empty"]),
        (["metadata", "{empty}/none.png"], 1, ["none.png"]),
    ],
)
def test_a_mistake_ends_in_one_clear_line_and_leaves_nothing_behind(
    arguments: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(*(argument.format(empty=empty) for argument in arguments), cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert list(empty.iterdir()) == []


LISTEN = (  # jobs in the background start deaf to Ctrl-C, and so would theirs
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_module('diffusette', run_name='__main__')"
)


def interrupted(drawing: Path, *arguments: str, when: Callable[[], bool]) -> tuple[int, str]:
    """What `generate … -o drawing` ends with, and says, after Ctrl-C at the moment that `when` names."""
    command = [sys.executable, "-c", LISTEN, "generate", "fox", "--seed", "1", "-o", str(drawing), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 60
        while not when() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    return process.returncode, said.strip()


def test_ctrl_c_ends_with_130_and_leaves_no_file(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = interrupted(tmp_path / "fox.png", "--steps", "1000", when=lambda: time.monotonic() > started + 3)
    assert ended == (130, "diffusette: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_are_done_stay_when_the_rest_is_interrupted(tmp_path: Path) -> None:
    code, _ = interrupted(tmp_path / "fox.png", "--count", "1000", "--steps", "2", when=(tmp_path / "fox-2.png").exists)
    assert code == 130
    left = sorted(tmp_path.iterdir())
    assert len(left) >= 2
    for path in left:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (128, 128)


def test_verify_accepts_the_shipped_bundle_and_inspect_names_its_licence() -> None:
    assert run("verify").stdout.startswith("ok")
    facts = json.loads(run("inspect", "--json").stdout)
    assert facts["target"] == "cpu"
    assert facts["source"]["licence"] == "apache-2.0"
    assert facts["components"]["unet"]["precision"] == "int8"
    shown = run("inspect").stdout
    assert "licence: apache-2.0" in shown
    assert "safety checker: none, so images are not checked" in shown
    assert len(shown.splitlines()) < 70


def test_metadata_prints_the_prompt_and_that_a_machine_drew_the_picture(tmp_path: Path) -> None:
    run("generate", "fox", "--seed", "1", "--steps", "2", "-o", tmp_path / "fox.png")
    facts = json.loads(run("metadata", tmp_path / "fox.png", "--json").stdout)
    assert (facts["prompt"], facts["seed"], facts["ai"]) == ("fox", 1, True)


def test_marks_can_be_left_out_each_by_its_own_flag(tmp_path: Path) -> None:
    run("generate", "fox", "--steps", "2", "-o", tmp_path / "fox.png", "--no-metadata")
    assert b"fox" not in (tmp_path / "fox.png").read_bytes()
    facts = json.loads(run("metadata", tmp_path / "fox.png", "--json").stdout)
    assert facts["ai"] is True
    run("generate", "fox", "--steps", "2", "-o", tmp_path / "cat.png", "--no-ai-mark")
    assert json.loads(run("metadata", tmp_path / "cat.png", "--json").stdout)["ai"] is False


def test_doctor_names_the_provider_and_what_is_missing() -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["providers"]["cpu"]["available"]
    assert "install" in facts["providers"]["cuda"]["missing"]
    assert facts["telemetry"] is False


def test_a_run_without_a_home_folder_works_and_opens_no_socket(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.'): raise AssertionError(event)\n"
        "sys.addaudithook(refuse)\n"
        "import diffusette\n"
        "diffusette.load().generate('fox', seed=1, steps=1)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"} | {"HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts the folder of the program read-only, for itself alone")
def test_a_read_only_install_folder_does(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    mounts = f'mount --bind "{root}" "{root}" && mount -o remount,ro,bind "{root}" "{root}"'
    if subprocess.run(["unshare", "-m", "sh", "-c", mounts], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    draw = f'"{sys.executable}" -m diffusette generate fox --seed 1 --steps 1 -o "{tmp_path / "fox.png"}"'
    script = f'{mounts} && ! touch "{root}/runtime/probe" 2> /dev/null && cd "{tmp_path}" && {draw}'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
